# One HTTP server on port 8000, its memory in the volume /data:
#   docker build -t agemem-mcp .
#   export AGEMEM_TOKEN=$(openssl rand -hex 32)
#   docker run -d -p 8000:8000 -v agemem:/data -e AGEMEM_TOKEN agemem-mcp
# Without AGEMEM_TOKEN it refuses to start: it listens beyond the container.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/agemem
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
COPY policies ./policies
COPY training ./training
# The model and tokenizer files become part of the image, outside the volume.
RUN /opt/agemem/bin/pip install --constraint constraints.txt . \
    && AGEMEM_ASSETS_DIR=/opt/agemem/assets /opt/agemem/bin/agemem-mcp assets pull

FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 agemem \
    && useradd --system --uid 10001 --gid agemem --no-create-home --home-dir /data agemem \
    && install --directory --owner=agemem --group=agemem --mode=0700 /data
COPY --from=build /opt/agemem /opt/agemem
ENV PATH=/opt/agemem/bin:$PATH \
    AGEMEM_ASSETS_DIR=/opt/agemem/assets \
    AGEMEM_DATA_DIR=/data \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["agemem-mcp"]
CMD ["serve", "--transport", "http", "--host", "0.0.0.0", "--port", "8000"]
