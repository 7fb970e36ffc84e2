from smtpd.recent_logins import RecentLogins


def test_login_is_remembered_for_its_time_only() -> None:
    now = [0.0]
    recent = RecentLogins(60, clock=lambda: now[0])
    token = recent.token("user", "hash", "password")
    recent.add(token)
    now[0] = 59.9
    assert token in recent
    assert recent.token("user", "hash2", "password") not in recent
    assert recent.token("userh", "ash", "password") not in recent
    now[0] = 60
    assert token not in recent


def test_oldest_login_is_forgotten_when_there_are_too_many() -> None:
    recent = RecentLogins(60, limit=2, clock=lambda: 0.0)
    tokens = [recent.token(name) for name in "abc"]
    for token in tokens:
        recent.add(token)
    assert [token in recent for token in tokens] == [False, True, True]
