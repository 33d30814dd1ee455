"""A server that speaks the OpenAI completions API, counts what it is asked for, and fails on demand."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE_S = 60.0  # a client that waits for the wrong thing shall fail its test, not hang it


class Behaviour:
    """What the double does; change it while it runs."""

    def __init__(self, **changes):
        self.token_ids = True  # takes prompts of token ids
        self.unknown_fields = True  # ignores fields it does not know; else 422
        self.forced_length = True  # honours ignore_eos
        self.vocabulary = 1000
        self.tokens_before = 0  # put before every text
        self.fail = None  # "500", "cut", "short", "prompt", "no usage", "error", "hang"
        self.fail_from = 0  # with this completion, counted from now
        self.max_model_len = None
        self.text = "x"
        self.together = None  # a barrier: no first text before so many completions are being served
        self.last_s = 0.0  # by which the first text of the last of them comes later
        self.go_on = None  # an event: no second text before it
        self.first_s = 0.0  # before the first text
        self.token_s = 0.0  # between two
        self.requests = []  # the bodies it was sent
        self.begun = 0  # completions that have sent their first text
        self.at_once = 0  # completions being served
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.__dict__.update(changes)


@contextmanager
def serving(**changes):
    """Run the double on a free port of the loopback; yields its address and its behaviour."""
    behaviour = Behaviour(**changes)
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.request_queue_size = 64
    server.socket.listen(64)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, *_):
        pass

    def _json(self, status, document):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        if self.path != "/v1/models":
            return self._json(404, {"detail": "Not Found"})
        entry = {"id": "served", "owned_by": "double", "max_model_len": self.behaviour.max_model_len}
        return self._json(200, {"data": [entry]})

    def do_POST(self):
        doing = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with doing.lock:
            doing.requests.append(body)
            failing = doing.fail if doing.fail_from <= 0 else None
            doing.fail_from -= 1
            doing.at_once += 1
            doing.most_at_once = max(doing.most_at_once, doing.at_once)
        try:
            self._complete(doing, body, failing)
        except BrokenPipeError:
            pass
        finally:
            with doing.lock:
                doing.at_once -= 1

    def _complete(self, doing, body, failing):
        refusal = self._refusal(doing, body, failing)
        if refusal is not None:
            return self._json(*refusal)
        prompt, tokens_out = body["prompt"], body["max_tokens"]
        tokens_in = len(prompt) if isinstance(prompt, list) else doing.tokens_before + len(prompt.encode())
        if not (doing.forced_length and (body.get("ignore_eos") or body.get("generation_config"))):
            tokens_out = min(tokens_out, 3)  # an answer that ends early
        tokens_out -= failing == "short"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if doing.together is not None and doing.together.wait(PATIENCE_S) == 0:
            time.sleep(doing.last_s)
        time.sleep(5 if failing == "hang" else doing.first_s)
        for n in range(tokens_out):
            if n == 0:
                with doing.lock:
                    doing.begun += 1
            elif n == 1 and doing.go_on is not None:
                doing.go_on.wait(PATIENCE_S)
            if failing == "cut" and n == tokens_out // 2:
                self.close_connection = True
                return self.connection.shutdown(2)
            if failing == "error" and n == 1:
                return self._chunk({"error": "the engine died"}, last=True)
            self._chunk({"choices": [{"text": doing.text, "finish_reason": None}], "usage": None})
            time.sleep(doing.token_s)
        usage = {"prompt_tokens": tokens_in + (failing == "prompt"), "completion_tokens": tokens_out}
        choices = [{"text": "", "finish_reason": "length"}]
        return self._chunk({"choices": choices, "usage": None if failing == "no usage" else usage}, last=True)

    @staticmethod
    def _refusal(doing, body, failing):
        prompt = body["prompt"]
        if failing == "500":
            return 500, {"error": {"message": "out of cheese", "code": 500}}
        if isinstance(prompt, list) and not doing.token_ids:
            return 400, {"detail": "prompt must be a string."}
        if isinstance(prompt, list) and max(prompt) >= doing.vocabulary:
            return 400, {"message": "token id out of vocabulary"}
        if not doing.unknown_fields and "ignore_eos" in body:
            return 422, {"detail": "Unexpected fields: ignore_eos"}
        return None

    def _chunk(self, document, *, last=False):
        data = b"data: " + json.dumps(document).encode() + b"\n\n"
        if last:
            data += b"data: [DONE]\n\n"
        end = b"0\r\n\r\n" if last else b""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" + end)
        self.wfile.flush()
