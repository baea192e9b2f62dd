"""The relays of all tenants: which of them know that they send for several senders."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from otp_stream.configs import relay_configs
from otp_stream.relay import RelayConfig, SmtpRelay
from otp_stream.relay_groups import RelayGroups
from otp_stream.settings import Settings, Tenants, load, read_tenants

OWN = 'smtp_host = "x.example"\nsmtp_user = "u"\nsmtp_pass = "pass-9-word"\n'


class Relay(SmtpRelay):
    """Records the senders that it is to know."""

    def __init__(self, config: RelayConfig, **changes: Any) -> None:
        super().__init__(config, **changes)
        self.senders: Collection[str | None] = ()

    def use_senders(self, senders: Collection[str | None]) -> None:
        self.senders = senders


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Tenants]:
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, "node_env"):
        monkeypatch.delenv(name.upper(), raising=False)

    def read(toml: str) -> Tenants:
        file = tmp_path / "tenants.toml"
        file.write_text(toml)
        settings, problems = load(
            worker=True, sender_email="no-reply@acme.example", smtp_host="smtp.acme.example", smtp_auth="none",
            tenants_file=file,
        )  # fmt: skip
        assert problems == []
        return read_tenants(settings)[0]

    return read


async def test_each_relay_knows_the_senders_of_its_tenants(read: Callable[[str], Tenants]) -> None:
    default = Relay(RelayConfig("smtp.acme.example", 587, "no-reply@acme.example"))
    made: dict[str, Relay] = {}

    def make(name: str, settings: Settings, _: bool) -> Relay:  # noqa: FBT001 - as RelayGroups calls it
        made[name] = Relay(relay_configs(settings)[0])
        return made[name]

    one = f'[tenants.a]\n{OWN}\n[tenants.b]\n{OWN}\n[tenants.c]\nbrand_name = "C"\n'
    groups = RelayGroups(default, make, read(one))
    assert default.senders == {None, "no-reply@acme.example"}
    assert made["a"].senders == {"no-reply@acme.example"}
    # the relay of the default tenant is never replaced
    groups.use(read(f'{one}sender_email = "c@shop-c.example"\n[tenants.d]\nsender_email = "D <d@Shop-D.example>"\n'))
    assert default.senders == {None, "c@shop-c.example", "d@shop-d.example"}
    await groups.close()
