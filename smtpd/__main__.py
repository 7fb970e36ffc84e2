"""Run the command `smtpd` as `python -m smtpd`."""

from smtpd.cli import main

if __name__ == "__main__":
    main(prog_name="smtpd")
