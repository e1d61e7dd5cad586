"""Server-sent events, as far as chat endpoints use them: the data of each event, from bytes as they come."""

from __future__ import annotations

import codecs
import io

_UTF8 = codecs.getincrementaldecoder("utf-8-sig")


class EventReader:
    r"""Cuts a stream of bytes into events, however it was cut on its way.

    Comments and fields other than ``data`` are passed over, lines may end in LF, CRLF or CR, several
    lines of data are joined by a line feed (HTML standard, 9.2.6). Deviation from it: an event that
    the end of the stream leaves open counts, since servers forget the last empty line.
    """

    def __init__(self) -> None:
        # It also holds back a CR that may be half of a CRLF, and a character of which bytes are missing.
        self._characters = io.IncrementalNewlineDecoder(_UTF8("replace"), translate=True)
        self._line = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes.

        Returns:
            The data of the events that they complete.
        """
        return self._read(self._characters.decode(chunk))

    def end(self) -> list[str]:
        """Take the end of the stream.

        Returns:
            The data of the event that it left open, if there is one.
        """
        return self._read(self._characters.decode(b"", final=True) + "\n\n")

    def _read(self, text: str) -> list[str]:
        *lines, self._line = (self._line + text).split("\n")
        events: list[str] = []
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                if name == "data":
                    self._data.append(value.removeprefix(" "))
            else:
                events.append("\n".join(self._data))
                self._data.clear()
        return [event for event in events if event.strip()]
