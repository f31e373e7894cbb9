"""Who is told of what, on real loopback servers of HTTP and SMTP; what can't be told stops nothing."""

import base64
import datetime
import hashlib
import hmac
import http.server
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from flows.adapters import notifications
from flows.adapters.notifications import News
from flows.cli import use
from flows.workspace import workspace
from pvqae.core import config
from pvqae.core.errors import ConfigError, DataError
from tests import ports

NEWS = News("promoted", "line", "line nut version 3", "pvqae-line-nut version 3 is champion now", "pvqae-line-nut", "3",
            ("kept: image AUROC: 0.98", "kept: size: 7 MB"))  # fmt: skip
SECRET = "not a secret of anybody"


@dataclass
class Hook:
    """A receiver that answers with `answers`, one after another, then 204."""

    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
            code = found.answers.pop(0) if found.answers else 204
            self.send_response(code)
            if code == 302:
                self.send_header("Location", f"{found.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/token-in-the-path"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@dataclass
class Box:
    """A mail server's inbox; the first `busy` messages are put off."""

    busy: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    port: int = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.busy:
            self.busy -= 1
            return "451 later, please"
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, to: str, _: Any) -> str:  # noqa: N802
        if to.startswith("nobody"):
            return "550 there is nobody"
        envelope.rcpt_tos.append(to)
        return "250 fine"


def _known(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    fits = isinstance(data, LoginPassword) and (data.login, data.password) == (b"line", SECRET.encode())
    return AuthResult(success=fits, handled=False)


@contextmanager
def receiving(**how: Any) -> Iterator[Box]:
    with ports.held() as port:  # with port 0 aiosmtpd waits for itself at port 0
        found = Box(port=port)
        server = Controller(found, "127.0.0.1", port, ready_timeout=60, **how)
        server.start()
        try:
            yield found
        finally:
            server.stop()


@pytest.fixture
def box() -> Iterator[Box]:
    with receiving(authenticator=_known, auth_require_tls=False) as found:
        yield found


def settings(**values: Any) -> config.Notify:
    return config.parse({"notify": values}).notify


def mailing(box: Box, **values: Any) -> config.Notify:
    known = {"mail": ["a@example.org", "b@example.org"], "sender": "line@example.org", "smtp_security": "none"}
    return settings(**known, smtp=f"127.0.0.1:{box.port}", **values)


def send(known: config.Notify, news: News = NEWS, **environ: str) -> list[str]:
    return [one.error for one in notifications.deliver(known, news, environ, pause=0)]


def test_a_webhook_gets_signed_json(hook: Hook) -> None:
    assert send(settings(webhook=hook.url, webhook_secret="HOOK"), HOOK=SECRET) == [""]
    ((headers, body),) = hook.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    told = json.loads(body)
    assert told["type"] == "pvqae.promoted"
    assert told["data"]["version"] == "3"
    assert told["data"]["lines"] == list(NEWS.lines)
    assert SECRET not in body.decode()


def test_a_secret_of_standard_webhooks_is_base64(hook: Hook) -> None:
    key = b"\x00\xff" * 16
    known = settings(webhook=hook.url, webhook_secret="HOOK")
    assert send(known, HOOK=f"whsec_{base64.b64encode(key).decode()}") == [""]
    headers, body = hook.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"
    assert "expected base64" in send(known, HOOK="whsec_?")[0]


def test_another_try_has_the_same_id(hook: Hook) -> None:
    hook.answers = [503, 429]
    assert send(settings(webhook=hook.url, tries=3)) == [""]
    assert len({headers["webhook-id"] for headers, _ in hook.got}) == 1
    assert len(hook.got) == 3
    assert send(settings(webhook=hook.url)) == [""]
    assert len({headers["webhook-id"] for headers, _ in hook.got}) == 2


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (302, 1), (500, 3)])
def test_what_is_refused_is_said_without_the_address(hook: Hook, code: int, tries: int) -> None:
    hook.answers = [code] * 3
    (error,) = send(settings(webhook=hook.url, tries=3))
    assert str(code) in error
    assert "token" not in error
    assert len(hook.got) == tries


def test_an_address_that_is_a_secret_is_in_a_variable(hook: Hook) -> None:
    assert send(settings(webhook="$HOOK_URL"), HOOK_URL=hook.url) == [""]
    assert "HOOK_URL is not set" in send(settings(webhook="$HOOK_URL"))[0]
    assert "no http" in send(settings(webhook="$HOOK_URL"), HOOK_URL="file:///etc/passwd")[0]
    (error,) = send(settings(webhook="$HOOK_URL", tries=1), HOOK_URL="http://127.0.0.1:9/token-in-the-path")
    assert error
    assert "token" not in error


def test_nothing_unsigned_is_sent_where_a_secret_is_wanted(hook: Hook) -> None:
    assert "HOOK is not set" in send(settings(webhook=hook.url, webhook_secret="HOOK"))[0]
    assert hook.got == []


def test_mail_says_what_happened(box: Box) -> None:
    assert send(mailing(box)) == [""]
    (mail,) = box.mails
    assert (mail["Subject"], mail["To"]) == ("pvqae: line nut version 3 promoted", "a@example.org, b@example.org")
    assert mail["From"] == "line@example.org"
    assert mail.get_content().splitlines() == [NEWS.text, *(f"* {line}" for line in NEWS.lines)]


def test_a_name_makes_no_header_of_its_own(box: Box) -> None:
    news = News("failed", "line", "nut\r\nBcc: c@example.org", "über\nalles")
    assert send(mailing(box), news) == [""]
    (mail,) = box.mails
    assert mail["Bcc"] is None
    assert mail["Subject"] == "pvqae: nut Bcc: c@example.org failed"
    assert "über" in mail.get_content()


def test_mail_logs_in_with_a_password_from_the_environment(box: Box) -> None:
    known = mailing(box, smtp_user="line", smtp_password="MAIL")
    assert send(known, MAIL=SECRET) == [""]
    (error,) = send(known, MAIL="wrong")
    assert "535" in error
    assert "wrong" not in error
    assert len(box.mails) == 1


def test_mail_that_is_put_off_is_tried_again(box: Box) -> None:
    box.busy = 2
    assert send(mailing(box, tries=3)) == [""]
    box.busy = 9
    assert "451 later, please" in send(mailing(box, tries=2))[0]
    assert box.busy == 7


def test_who_was_refused_is_named(box: Box) -> None:
    known = mailing(box).model_copy(update={"mail": ("a@example.org", "nobody@example.org")})
    assert "nobody@example.org" in send(known)[0]
    assert len(box.mails) == 1


def test_no_mail_goes_where_starttls_is_wanted_and_not_offered(box: Box) -> None:
    known = mailing(box).model_copy(update={"smtp_security": "starttls"})
    assert "STARTTLS" in send(known)[0]
    known = mailing(box).model_copy(update={"smtp_security": "tls", "tries": 1})
    assert send(known) != [""]
    assert box.mails == []


def _self_signed(folder: Path) -> ssl.SSLContext:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    signed = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(private + signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


def test_a_server_with_a_certificate_that_nobody_signed_gets_nothing(tmp_path: Path) -> None:
    with receiving(tls_context=_self_signed(tmp_path)) as found:
        known = mailing(found).model_copy(update={"smtp_security": "starttls", "tries": 1})
        assert "CERTIFICATE_VERIFY_FAILED" in send(known)[0]
        assert found.mails == []


def test_one_place_that_fails_keeps_no_other_from_being_told(hook: Hook, box: Box) -> None:
    hook.answers = [404]
    known = mailing(box, webhook=hook.url)
    assert [bool(error) for error in send(known)] == [True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"webhook": "ftp://x"},
        {"webhook": "https://{}@example.org/x".format("user:word")},
        {"webhook_secret": "hunter2"},
        {"smtp_password": "hunter2"},
        {"mail": ["a@b"]},
        {"mail": ["a@b\nBcc: c@d"], "smtp": "h:25", "sender": "c@d"},
        {"smtp_user": "line"},
        {"smtp": "mail.example.org:25", "smtp_user": "u", "smtp_password": "P", "smtp_security": "none"},
        {"blocks": ["ops"]},
        {"events": ["everything"]},
    ],
)
def test_settings_that_can_not_work_or_hold_a_secret_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="notify"):
        settings(**wrong)


def project(folder: Path, **values: Any) -> Path:
    (folder / "params.yaml").write_text(json.dumps({"notify": values}))
    return folder


def test_only_the_events_that_are_wanted_are_told(tmp_path: Path, hook: Hook) -> None:
    root = project(tmp_path, webhook=hook.url, events=["failed"])
    assert notifications.tell(root, NEWS) == ()
    assert hook.got == []
    assert notifications.tell(tmp_path / "no project", NEWS) == ()


def test_what_is_lost_is_said(tmp_path: Path, hook: Hook, capsys: pytest.CaptureFixture[str]) -> None:
    hook.answers = [404]
    (line,) = notifications.tell(project(tmp_path, webhook=hook.url), NEWS)
    assert line == "not told to the webhook: it answered 404 Not Found"
    assert line in capsys.readouterr().out


def test_a_failure_is_told_once_by_the_outermost_flow(tmp_path: Path, hook: Hook) -> None:
    root = project(tmp_path, webhook=hook.url)

    def retrain() -> None:
        with workspace.failures_told(root, "retrain") as attempt:
            attempt.dataset = "line"
            with workspace.failures_told(root, "train"):
                raise DataError("no images\nin http://{}@host/x".format("user:word"))

    with pytest.raises(DataError, match="no images"):
        retrain()
    ((_, body),) = hook.got
    told = json.loads(body)["data"]
    assert told["text"] == "retrain line: no images"
    assert told["lines"] == ["in http://host/x"]
    with pytest.raises(KeyboardInterrupt), workspace.failures_told(root, "train"):
        raise KeyboardInterrupt
    assert len(hook.got) == 1


def test_the_command_tries_every_place(tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "project", lambda: tmp_path)
    project(tmp_path, webhook=hook.url)
    shown = CliRunner().invoke(use.app, ["notify"])
    assert (shown.exit_code, hook.got) == (0, [])
    assert "the webhook: promoted, refused" in shown.stdout
    assert CliRunner().invoke(use.app, ["notify", "--test"]).exit_code == 0
    assert json.loads(hook.got[0][1])["type"] == "pvqae.test"
    hook.answers = [410]
    failed = CliRunner().invoke(use.app, ["notify", "--test"])
    assert failed.exit_code == 1
    assert "not told to the webhook: it answered 410" in failed.stdout


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("default")  # of Prefect's own client
def test_blocks_of_prefect_are_told_by_name(hook: Hook) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.system import Secret

    block = CustomWebhookNotificationBlock(
        name="ops", url=hook.url, method="POST", json_data={"text": "{{subject}}", "more": "{{body}}"}
    )
    block.save("line-3", overwrite=True)
    Secret(value="x").save("none-of-ours", overwrite=True)  # type: ignore[arg-type]
    found = send(settings(blocks=["custom-webhook/line-3", "secret/none-of-ours", "slack-webhook/gone"]))
    assert found[0] == ""
    assert json.loads(hook.got[0][1])["text"] == NEWS.title
    assert "expected a notification block, found Secret" in found[1]
    assert "Unable to find block document named gone" in found[2]


def test_the_check_of_a_signature_on_the_page_works(hook: Hook) -> None:
    page = Path(__file__).parents[3] / "docs" / "operations" / "notifications.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    given: dict[str, Any] = {}
    exec(code, given)
    assert send(settings(webhook=hook.url, webhook_secret="HOOK"), HOOK=SECRET) == [""]
    headers, body = hook.got[0]
    assert given["genuine"](headers, body, SECRET)
    assert not given["genuine"](headers, body + b" ", SECRET)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.filterwarnings("default")  # of Prefect's own client
def test_a_flow_that_fails_is_told_once(tmp_path: Path, hook: Hook) -> None:
    from flows.retrain.retrain import retrain_all
    from flows.train.train import train

    root = project(tmp_path, webhook=hook.url)
    with pytest.raises(ConfigError, match=r"train\.stepss"):
        train(str(root), overrides=("train.stepss=1",))
    ((_, body),) = hook.got
    assert json.loads(body)["type"] == "pvqae.failed"
    assert json.loads(body)["data"]["text"].startswith("train: ")
    retrain_all(str(root))  # no dataset: nothing happens, nobody is told
    assert len(hook.got) == 1
