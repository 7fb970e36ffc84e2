"""Write the reference texts below the current directory, or check them."""

import sys
from pathlib import Path

import click

from smtpd.reference import stale, write


@click.command()
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit status 1 when something is stale.")
def reference(only_check: bool) -> None:
    """Write the texts that are made from code, in the repository's top directory."""
    top = Path.cwd()
    if not (top / "pyproject.toml").is_file():
        raise click.UsageError("run it in the repository's top directory")
    names = stale(top) if only_check else write(top)
    for name in names:
        click.echo(f"{'stale' if only_check else 'written'}: {name}")
    sys.exit(1 if only_check and names else 0)


if __name__ == "__main__":
    reference(prog_name="python -m smtpd.reference")
