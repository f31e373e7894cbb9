"""The options of `stream`, for a bundle (`pvqae stream`) and for a registered version (`python -m flows stream`)."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvqae.cli.console import FAILED, INTERRUPTED
from pvqae.core.errors import ConfigError

if TYPE_CHECKING:
    from pvqae.inference.bundle import Detector
    from pvqae.serving.batch_source import Source
    from pvqae.stream import frames, sinks

SOURCE = "PVQAE_SOURCE"


@dataclass(frozen=True)
class Options:
    """What the command line says of a stream; its help says what each means."""

    out: Path | None
    folder: Path | None
    keep: int
    webhook: str
    mqtt: str
    page: int | None
    page_host: str
    token_file: Path | None
    every: int
    rate: float
    drop: str
    queue: int
    frames: int
    poll: float
    patience: float
    ffmpeg: tuple[str, ...]


def add(app: typer.Typer, first: Any, run: Callable[[Any, str, Options], int], **about: Any) -> None:
    """Add the command `stream` to `app`: its argument `first` says what scores, `run` does it; `about` as in typer."""

    @app.command("stream", **about)
    def _stream(
        what: first,
        source: Annotated[
            str,
            typer.Argument(
                envvar=SOURCE,
                help="A camera's number (0), rtsp://..., http://..., a video file, or a folder to watch; in the flows "
                "also s3://bucket/prefix. A password in it is safer in PVQAE_SOURCE: arguments are seen by others.",
            ),
        ],
        out: Annotated[
            Path | None, typer.Option(help="Folder whose scores.jsonl gets a line per frame. Default: stdout.")
        ] = None,
        folder: Annotated[
            Path | None, typer.Option(help="Folder for image, heatmap, mask and row of each alarm.")
        ] = None,
        keep: Annotated[int, typer.Option(min=1, help="At most this many alarms in --folder, the newest.")] = 1000,
        webhook: Annotated[
            str, typer.Option(help="POST each alarm's row here as JSON, signed with PVQAE_WEBHOOK_SECRET.")
        ] = "",
        mqtt: Annotated[
            str, typer.Option(metavar="HOST[:PORT]/TOPIC", help="Publish each alarm's row here; mqtts:// for TLS.")
        ] = "",
        page: Annotated[
            int | None, typer.Option(min=0, max=65535, help="Serve a live page on this port; 0 takes a free one.")
        ] = None,
        page_host: Annotated[
            str, typer.Option(help="Host of the live page; a non-loopback host requires a token.")
        ] = "127.0.0.1",
        token_file: Annotated[
            Path | None, typer.Option(help="File with the page's token. Default: PVQAE_TOKEN, if set.")
        ] = None,
        every: Annotated[int, typer.Option(min=1, help="Score every Nth frame of a video or camera.")] = 1,
        rate: Annotated[float, typer.Option(min=0, help="Score at most this many frames a second; 0: all.")] = 0.0,
        drop: Annotated[
            str,
            typer.Option(
                metavar="oldest|newest|none",
                help="What is dropped, and counted, when scoring can't keep up. Default: none for files and folders, "
                "which then wait, oldest for what is live.",
            ),
        ] = "",
        queue: Annotated[int, typer.Option(min=1, help="Frames that may wait for their score.")] = 8,
        frames: Annotated[int, typer.Option(min=0, help="End after this many scored frames; 0: never.")] = 0,
        poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at a folder or prefix.")] = 1.0,
        patience: Annotated[
            float, typer.Option(min=0, help="Seconds within which a camera or stream has to give its first frame.")
        ] = 30.0,
        ffmpeg: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of FFmpeg's input, e.g. framerate=30.")
        ] = None,
    ) -> None:
        """Score the frames of a camera, a stream, a video or a watched folder as they come, until it ends or SIGTERM.

        Exit code 1: some frames could not be scored, or alarms not be delivered; 2: the source never opened.
        """
        options = Options(
            out, folder, keep, webhook, mqtt, page, page_host, token_file, every, rate, drop, queue, frames, poll,
            patience, tuple(ffmpeg or ()),
        )  # fmt: skip
        raise typer.Exit(run(what, source, options))


def of_bundle(bundle: Path, source: str, options: Options) -> int:
    """Score a source with a bundle's folder; return the exit code."""
    from pvqae.inference import bundle as bundles
    from pvqae.serving import batch_cli

    batch_cli.prepare()
    return stream(bundles.load(bundle), source, options)


def stream(
    detector: "Detector", address: str, options: Options, version: str = "", bucket: "Source | None" = None
) -> int:
    """Score a source until it ends; return the exit code. `bucket`: what is at `address` where that is a bucket.

    Raises errors of `pvqae.core.errors` for what the user can repair.
    """
    from pvqae.core.progress import tell
    from pvqae.stream import frames, pipeline, sinks

    for note in detector.notes:
        tell(note)
    counts, stop = frames.Counts(), threading.Event()
    settings = pipeline.Settings(options.queue, options.drop, options.frames)
    settings.policy(True)  # a wrong word is told before anything is opened
    with ExitStack() as stack:
        lines = sinks.Lines(options.out, tell)
        outputs: list[sinks.Sink] = [lines]
        stack.callback(lines.close)
        known, bits = lines.known(detector.sha256), detector.scorer.image.bits
        if bucket is not None:
            source: frames.Frames = frames.watched(
                bucket, address, counts, tell, known, bits, options.poll, options.every, options.rate
            )
        else:
            source = frames.of(
                address, counts, tell, known=known, bits=bits, every=options.every, rate=options.rate,
                poll=options.poll, patience=options.patience, options=_pairs(options.ffmpeg),
            )  # fmt: skip
        came = stack.enter_context(pipeline.stopped_by_signals(stop))
        for sink in _others(detector, source.name, counts, options, stack):
            stack.callback(sink.close)
            outputs.append(sink)
        pipeline.run(detector, source, counts, outputs, settings, tell, stop, version)
    words = "; ".join(filter(None, (pipeline.sentence(counts), *(sink.said() for sink in outputs))))
    print(f"{source.name}: {words}", file=sys.stdout if options.out else sys.stderr, flush=True)
    if came and came[0] == signal.SIGINT:
        return INTERRUPTED
    return FAILED if counts.failed or any(sink.failed for sink in outputs) else 0


def _others(
    detector: "Detector", name: str, counts: "frames.Counts", options: Options, stack: ExitStack
) -> Iterator["sinks.Sink"]:
    """Open what was asked for besides the lines; the page ends with `stack`."""
    from pvqae.core import config
    from pvqae.core.progress import tell
    from pvqae.stream import sinks

    if options.folder:
        yield sinks.AlarmFolder(options.folder, options.keep, detector)
    if options.webhook:
        yield sinks.Webhook(options.webhook, tell)
    if options.mqtt:
        yield sinks.Mqtt(options.mqtt, tell)
    if options.page is not None:
        try:
            from pvqae.stream import live
        except ImportError as error:
            raise ConfigError(f"--page: the package {error.name} is missing; install pvqae[serve]") from None
        from pvqae.serving import server

        title = f"{detector.config['dataset']}/{detector.config['category']}"
        board = live.Board(detector, title, name, counts)
        settings = config.Service().model_copy(update={"host": options.page_host, "port": options.page})
        stack.enter_context(live.served(board, settings, server.token_of(options.token_file), tell))
        yield board


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Return KEY=VALUE as a dictionary. Raises `ConfigError` for another form."""
    for text in texts:
        if "=" not in text.strip("="):
            raise ConfigError(f"--ffmpeg: expected KEY=VALUE, found {text!r}")
    return {key: value for key, _, value in (text.partition("=") for text in texts)}
