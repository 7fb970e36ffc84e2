from importlib.metadata import version
from pathlib import Path

from click.testing import CliRunner

from smtpd.cli import main


def test_serve_with_a_bad_file_fails_before_anything_starts(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--config", str(tmp_path / "none.toml")])
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


def test_version_is_that_of_the_distribution() -> None:
    assert CliRunner().invoke(main, ["--version"], prog_name="smtpd").output == f"smtpd {version('smtpd')}\n"
