"""The text of a configuration, for commands that read one without serving."""

FILES_ABSENT = """
[smtpd]
hostname = "mx.example.com"
[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
[smtpd.tls]
cert_file = "/nonexistent/crt"
key_file = "/nonexistent/key"
[smtpd.metrics]
token_file = "/nonexistent/token"
"""
"""None of the files that it names is there; more tables can follow."""
