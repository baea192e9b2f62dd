from pathlib import Path

import ground
import pytest
import relays


@pytest.fixture(autouse=True)
def nothing_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every program fail, and no relay be there."""
    for program in ("apt-get", "npm"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(relays, "FOLDER", tmp_path / "relays")
    monkeypatch.setattr(relays, "NODE_MODULES", tmp_path / "relays/node_modules")


def test_without_npm_s_relays_the_live_tests_end_with_what_to_do() -> None:
    with pytest.raises(SystemExit, match=r"need .* and Haraka@3\.3\.4 and .*typescript@.*\n  npm install --prefix"):
        ground.install_from_npm()


@pytest.mark.parametrize("package", relays.UNPACKED)
def test_without_a_package_of_debian_the_live_tests_end_with_what_to_do(package: relays.Unpacked) -> None:
    text = rf"need {package.package} in .*relays \(OTP_TEST_RELAYS .*\n  unpack Debian's package"
    with pytest.raises(SystemExit, match=text):
        ground.unpack(package)
