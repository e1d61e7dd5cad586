"""Where rollouts of large models come from: servers that generate faster than the process that trains."""

from agemem_training.engines.rollouts import ServerSampler, check_server, server_sampler
from agemem_training.engines.vllm import RolloutServerError, VLLMPolicy

__all__ = ["RolloutServerError", "ServerSampler", "VLLMPolicy", "check_server", "server_sampler"]
