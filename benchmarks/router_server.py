"""`python -m benchmarks.router_server`: a model server that answers at once or late, and says its port.

Answers come after the seconds that the path begins with: ``/2/v1/chat/completions``. A request that
offers tools is answered by a call of the first one, any other by text; both are about 400 bytes of
answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

WORDS = "The change is small and its reason is the history above: the loss still fell when it ended. " * 3
VALUE = {"score": 0.25, "comment": WORDS}
USAGE = {"prompt_tokens": 60, "completion_tokens": 90, "total_tokens": 150}


def document(message: Mapping[str, object], finish: str) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}],
        "usage": USAGE,
    }
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


FUNCTION = {"name": "Verdict", "arguments": json.dumps(VALUE)}
CALL = {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": FUNCTION}]}
AS_TEXT = document({"content": json.dumps(VALUE)}, "stop")
AS_CALL = document(CALL, "tool_calls")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            wait_s = float(head.split(b"/", 2)[1])
            if wait_s:
                await asyncio.sleep(wait_s)
            writer.write(AS_CALL if b'"tools"' in body else AS_TEXT)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
