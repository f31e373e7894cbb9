"""Tell people and programs what became of a model: by a webhook, by mail, by blocks of Prefect.

The section `notify` of the project's params.yaml says to whom. What can't be told is said in a line; it stops nothing.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import smtplib
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from flows.core import environment
from pvqae.core import config
from pvqae.core.config import Event
from pvqae.core.errors import PvqaeError

_LONGEST = 4000  # characters of a text
_WORDS: Mapping[Event, str] = {
    "promoted": "promoted",
    "refused": "not promoted",
    "held": "waits for a person",
    "rolled_back": "rolled back",
    "drifted": "drifted",
    "failed": "failed",
}


class _LostError(Exception):
    """A message did not arrive; `again`: another try may help. The text has no address that may be a secret."""

    def __init__(self, text: str, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


@dataclass(frozen=True)
class News:
    """Something that happened. `subject` is what it happened to, `text` a sentence, `lines` the details."""

    event: Event
    dataset: str
    subject: str
    text: str
    model: str = ""
    version: str = ""
    lines: tuple[str, ...] = ()
    test: bool = False

    @property
    def title(self) -> str:
        """Return one line of printable characters, for a subject."""
        words = "" if self.test else _WORDS[self.event]
        return " ".join(f"pvqae: {self.subject} {words}".split())[:200]

    @property
    def body(self) -> str:
        """Return the sentence and the details as plain text."""
        return "\n".join([self.text, *(f"* {line}" for line in self.lines)])[:_LONGEST]


@dataclass(frozen=True)
class Delivery:
    """What came of a message to one place; `error` "" where it arrived."""

    place: str
    error: str = ""

    def __str__(self) -> str:
        return f"not told to {self.place}: {self.error}" if self.error else f"told to {self.place}"


def tell(root: Path, news: News) -> tuple[str, ...]:
    """Send `news` to everybody that the project at `root` names for such an event.

    Return a line on each place that it did not reach, which is also printed. Raises nothing.
    """
    settings = config.usable(root / "params.yaml")[0].notify
    if news.event not in settings.events:
        return ()
    lost = tuple(str(one) for one in deliver(settings, news) if one.error)
    for line in lost:
        print(line, flush=True)
    return lost


def failed(root: Path, flow: str, dataset: str, error: Exception) -> None:
    """Tell of the error that ended a flow, without names and passwords in addresses."""
    kind = "" if isinstance(error, PvqaeError) else f"{type(error).__name__}: "
    first, *others = environment.shown(f"{kind}{error}").splitlines() or [kind]
    subject = f"{flow} {dataset}".strip()
    tell(root, News("failed", dataset, subject, f"{subject}: {first}", lines=tuple(others)))


def deliver(
    settings: config.Notify, news: News, environ: Mapping[str, str] = os.environ, pause: float = 1.0
) -> tuple[Delivery, ...]:
    """Send `news` to every place of `settings`, with pauses of `pause`, 2 x `pause`, ... seconds between tries."""
    found = []
    for place, send in _places(settings, environ):
        try:
            _tried(partial(send, news), settings.tries, pause)
            found.append(Delivery(place))
        except _LostError as error:
            found.append(Delivery(place, str(error)))
        except Exception as error:  # of a block's library, of an odd header: its text may hold a secret address
            found.append(Delivery(place, type(error).__name__))
    return tuple(found)


def places(settings: config.Notify) -> tuple[str, ...]:
    """Return who is told of what, in words."""
    return tuple(f"{place}: {', '.join(settings.events) or 'nothing'}" for place, _ in _places(settings, {}))


def try_out(settings: config.Notify) -> tuple[Delivery, ...]:
    """Send a test message to every place, once, whatever the events."""
    lines = ("the events that are told: " + ", ".join(settings.events),)
    news = News("failed", "", "a test message", "Nothing has happened: this is a test.", lines=lines, test=True)
    return deliver(settings.model_copy(update={"tries": 1}), news)


def _places(settings: config.Notify, environ: Mapping[str, str]) -> Iterator[tuple[str, Callable[[News], None]]]:
    """Yield each place in words without secrets, and what sends there."""
    if settings.webhook:
        number = f"msg_{uuid.uuid4().hex}"  # the same in every try: its receiver takes it once
        yield "the webhook", partial(_post, settings, environ, number)
    if settings.mail:
        yield f"{', '.join(settings.mail)} by mail", partial(_mail, settings, environ)
    for name in settings.blocks:
        yield f"Prefect's block {name}", partial(_notify, name)


def _tried(send: Callable[[], None], tries: int, pause: float) -> None:
    for number in range(tries):
        try:
            return send()
        except _LostError as error:
            if not error.again or number == tries - 1:
                raise
        time.sleep(pause * 2**number)
    raise AssertionError("at least one try")


def _secret(name: str, environ: Mapping[str, str]) -> str:
    if not (value := environ.get(name, "")):
        raise _LostError(f"the environment variable {name} is not set; set it where flows run")
    return value


def _post(settings: config.Notify, environ: Mapping[str, str], number: str, news: News) -> None:
    """Post JSON, signed as Standard Webhooks has it: HMAC-SHA256 of id, time and body. Redirects are not followed."""
    url = settings.webhook
    if url.startswith("$"):
        url = _secret(url[1:], environ)
        if urlsplit(url).scheme not in ("http", "https"):
            raise _LostError(f"the environment variable {settings.webhook[1:]} holds no http or https address")
    body = json.dumps(_payload(news), ensure_ascii=False).encode()
    now = str(int(time.time()))
    headers = {"Content-Type": "application/json", "webhook-id": number, "webhook-timestamp": now}
    if settings.webhook_secret:
        key = _key(_secret(settings.webhook_secret, environ))
        headers["webhook-signature"] = f"v1,{_signature(key, number, now, body)}"
    try:
        answer = requests.post(url, data=body, headers=headers, timeout=settings.timeout, allow_redirects=False)
    except requests.RequestException as error:  # its text has the address
        raise _LostError(f"{type(error).__name__}: is there a server that answers?", again=True) from None
    if not answer.ok or answer.is_redirect:
        again = answer.status_code == 429 or answer.status_code >= 500
        raise _LostError(f"it answered {answer.status_code} {answer.reason}", again)


def _payload(news: News) -> dict[str, Any]:
    return {
        "type": f"pvqae.{'test' if news.test else news.event}",
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "data": {
            "dataset": news.dataset,
            "model": news.model,
            "version": news.version,
            "title": news.title,
            "text": news.text[:_LONGEST],
            "lines": [line[:_LONGEST] for line in news.lines],
        },
    }


def _key(secret: str) -> bytes:
    """Return the bytes of a secret: whsec_... is base64, as Standard Webhooks writes it, any other is text."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise _LostError("expected base64 after whsec_ in the webhook's secret, found other text") from None


def _signature(key: bytes, number: str, timestamp: str, body: bytes) -> str:
    signed = f"{number}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _mail(settings: config.Notify, environ: Mapping[str, str], news: News) -> None:
    """Send one message to all addresses."""
    password = _secret(settings.smtp_password, environ) if settings.smtp_user else ""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = news.title, settings.sender, ", ".join(settings.mail)
    message["Date"], message["Auto-Submitted"] = formatdate(), "auto-generated"
    message["Message-ID"] = make_msgid(domain=settings.sender.partition("@")[2])
    message.set_content(news.body)
    host, _, port = settings.smtp.rpartition(":")
    try:
        with _connected(settings, host, int(port)) as server:
            if settings.smtp_user:
                server.login(settings.smtp_user, password)
            refused = server.send_message(message)
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError, ssl.SSLError) as error:
        raise _LostError(f"{host} refused it: {error}") from None
    except smtplib.SMTPResponseException as error:
        text = str(error.smtp_error, "utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        raise _LostError(f"{host} answered {error.smtp_code} {text}", again=error.smtp_code < 500) from None
    except OSError as error:
        raise _LostError(f"{host}: {error}", again=True) from None
    if refused:
        raise _LostError(f"{host} refused {', '.join(refused)}; the others have it")


def _connected(settings: config.Notify, host: str, port: int) -> smtplib.SMTP:
    if settings.smtp_security == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=settings.timeout, context=ssl.create_default_context())
    server = smtplib.SMTP(host, port, timeout=settings.timeout)
    if settings.smtp_security == "starttls":
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


def _notify(name: str, news: News) -> None:
    """Send by a notification block of Prefect's server: Slack, Teams, PagerDuty, ..."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block: Any = Block.load(name)
    except ValueError as error:
        raise _LostError(f"{str(error).splitlines()[0]}; make it on Prefect's page") from None
    if not isinstance(block, NotificationBlock):
        raise _LostError(f"expected a notification block, found {type(block).__name__}")
    notify: Any = block.notify  # a coroutine only where an event loop runs
    notify(news.body, news.title)
