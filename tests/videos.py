"""Videos that tests make, and streams that they serve."""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def video(file: Path, frames: Sequence[np.ndarray], codec: str = "ffv1", pixels: str = "bgr0", rate: int = 25) -> Path:
    """Write frames (H, W, 3), 0 to 255, as a video; lossless by default."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def jpeg(frame: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=95)
    return data.getvalue()


def of_jpegs(file: Path, parts: Sequence[bytes]) -> Path:
    """A video of these pictures as they are, whole or not, of whatever size each."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        container.start_encoding()
        for number, data in enumerate(parts):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            container.mux(packet)
    return file


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """A server of this machine; yields its port."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mjpeg(parts: Callable[[int], Iterator[bytes]], opened: list[str]) -> type[BaseHTTPRequestHandler]:
    """A camera that speaks multipart JPEG, with a password: `parts(n)` are the pictures of the nth connection.

    Then the connection breaks. `opened` gets each request's credentials.
    """

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.headers.get("Authorization"):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            opened.append(self.headers["Authorization"])
            number = len(opened) - 1
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for data in parts(number):
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
                    self.wfile.write(head + data + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_: Any) -> None: ...

    return Camera
