from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamfleet_core.errors import InvalidURL
from streamfleet_core.urls import ServerURL, parse_url


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://localhost", ServerURL("redis", "localhost", 6379)),
        ("redis://localhost:6380/2", ServerURL("redis", "localhost", 6380, db=2)),
        ("redis://localhost/", ServerURL("redis", "localhost", 6379)),
        ("redis://localhost?db=3", ServerURL("redis", "localhost", 6379, db=3)),
        ("valkey://h:1", ServerURL("valkey", "h", 1)),
        ("rediss://h", ServerURL("rediss", "h", 6379, tls=True)),
        ("valkeys://h", ServerURL("valkeys", "h", 6379, tls=True)),
        ("redis://[::1]", ServerURL("redis", "::1", 6379)),
        ("redis://redis_1.my-net.example.:1", ServerURL("redis", "redis_1.my-net.example.", 1)),
        ("redis://1a.2b", ServerURL("redis", "1a.2b", 6379)),
        ("redis://bücher.example", ServerURL("redis", "bücher.example", 6379)),
        ("redis://10.0.0.255", ServerURL("redis", "10.0.0.255", 6379)),
        ("redis://[fe80::1%25eth0]:1", ServerURL("redis", "fe80::1%eth0", 1)),
        ("redis://[fe80::1%25eth0.100]", ServerURL("redis", "fe80::1%eth0.100", 6379)),
        ("redis://[fe80::1%25-a_~]:1", ServerURL("redis", "fe80::1%-a_~", 1)),
        ("redis://[fe80::1%25" + "e" * 64 + "]", ServerURL("redis", "fe80::1%" + "e" * 64, 6379)),
        ("redis://[fe80::2]:7000/1", ServerURL("redis", "fe80::2", 7000, db=1)),
        ("redis://alice:s3cret@h", ServerURL("redis", "h", 6379, username="alice", password="s3cret")),
        ("redis://:s3cret@h", ServerURL("redis", "h", 6379, password="s3cret")),
        ("redis://alice@h", ServerURL("redis", "h", 6379, username="alice")),
        ("redis://:@h", ServerURL("redis", "h", 6379, password="")),
        ("redis://a%40b:p%3Aq%2F%25@h", ServerURL("redis", "h", 6379, username="a@b", password="p:q/%")),
        ("redis://a:b:c@h", ServerURL("redis", "h", 6379, username="a", password="b:c")),
        ("redis://h?username=u&password=p%20q", ServerURL("redis", "h", 6379, username="u", password="p q")),
        ("unix:///run/redis.sock", ServerURL("unix", path="/run/redis.sock")),
        ("unix:///run/redis.sock?db=1", ServerURL("unix", path="/run/redis.sock", db=1)),
        ("unix://user:pw@/path", ServerURL("unix", path="/path", username="user", password="pw")),
        ("unix:///a%20b/@x", ServerURL("unix", path="/a b/@x")),
        ("memory://", ServerURL("memory")),
        ("unix:///s?timeout=5", ServerURL("unix", path="/s", options={"timeout": "5"})),
        ("redis://h?timeout=86400", ServerURL("redis", "h", 6379, options={"timeout": "86400"})),
        ("redis://h/2147483647", ServerURL("redis", "h", 6379, db=2147483647)),
        ("memory://name", ServerURL("memory", "name")),
        ("memory://name/", ServerURL("memory", "name")),
        ("embedded://", ServerURL("embedded")),
        ("embedded:///var/lib/queue", ServerURL("embedded", path="/var/lib/queue")),
        (
            "rediss://h?timeout=2.5&client_name=a%20b&ssl_ca_certs=%2Fca.pem",
            ServerURL(
                "rediss",
                "h",
                6379,
                tls=True,
                options={"timeout": "2.5", "client_name": "a b", "ssl_ca_certs": "/ca.pem"},
            ),
        ),
    ],
)
def test_urls_and_their_parts(url, parts):
    assert parse_url(url) == parts


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "did you mean redis://localhost?"),
        ("localhost:6379", "did you mean redis://localhost:6379?"),
        ("://h", "did you mean redis://h?"),
        ("redi://h", "unknown scheme 'redi'; did you mean redis://?"),
        ("reddis://h", "did you mean redis"),
        ("valkyrie://h", "did you mean valkey"),
        ("http://h", "unknown scheme 'http'; did you mean "),
        ("xyzzy://h", "did you mean redis://? Known: redis, valkey, rediss, valkeys, unix, memory, embedded"),
        ("REDIS://h", "did you mean redis://?"),
        ("http+cluster://h", "unknown scheme 'http+cluster'"),
        ("redis+a+cluster://h", "unknown scheme 'redis+a+cluster'"),
        ("redis+x://h", "unknown scheme 'redis+x'"),
        ("redis+sentinel://h", "redis+sentinel:// is not supported yet"),
        ("redis+cluster://h", "redis+cluster:// is not supported yet"),
        ("valkeys+cluster://h", "connect to the primary by valkeys://"),
        ("redis://", "^the URL names no host; did you mean localhost?"),
        ("redis://:6379", "names no host"),
        ("redis:///1", "names no host"),
        ("redis://h:", "bad port ''; a number from 1 to 65535 is needed, or no ':' for port 6379"),
        ("redis://h:0", "bad port '0'"),
        ("redis://h:65536", "bad port '65536'"),
        ("redis://h:-1", "bad port '-1'"),
        ("redis://h:6379x", "bad port '6379x'"),
        ("redis://h:٣", "bad port"),
        ("redis://::1", "more than one ':'"),
        ("redis://[::1", "bad IPv6 address"),
        ("redis://[::zz]", "bad IPv6 address"),
        ("redis://[h]:1", "bad IPv6 address"),
        ("redis://[::1]6379", "bad IPv6 address"),
        ("redis://[::1]:x", "bad port 'x'"),
        ("redis://a%20b", "bad host"),
        ("redis://a]b", "bad host 'a]b'; write a name such as redis.example.com, or an address: 127.0.0.1, [::1]"),
        ("redis://[", "bad IPv6 address '['; write it as [::1]:6379"),
        ("redis://[]", "bad IPv6 address '[]'"),
        ("redis://[]:1", "bad IPv6 address '[]:1'"),
        ("redis://[[::1]]", "bad IPv6 address"),
        ("redis://::1]", "more than one ':'; write an IPv6 address as [::1]:6379"),
        ("redis://[127.0.0.1]", "bad IPv6 address"),
        ("redis://[fe80::1%eth0]", "bad IPv6 address '[fe80::1%eth0]'; write the '%' before its zone as %25"),
        ("redis://[fe80::1%eth0", "bad IPv6 address '[fe80::1%eth0'; write it as [::1]:6379"),
        ("redis://[fe80::x%eth0]", "bad IPv6 address '[fe80::x%eth0]'; write it as [::1]:6379"),
        ("redis://[fe80::1%25" + "e" * 65 + "]", "bad zone"),
        ("redis://[fe80::1%25]", "bad zone ''"),
        ("redis://[fe80::1%25a%2Fb]", "bad zone 'a%2Fb' of an IPv6 address; write it as [fe80::1%25eth0]"),
        ("redis://[::1]:", "bad port ''"),
        ("redis://6379", "bad host '6379': it is a number; did you mean localhost:6379?"),
        ("redis://65535", "it is a number; did you mean localhost:65535?"),
        ("redis://0", "bad host '0'; an IPv4 address has four numbers up to 255"),
        ("redis://65536", "bad host '65536'; an IPv4 address has four numbers up to 255"),
        ("redis://123456", "bad host '123456'; an IPv4 address has four numbers up to 255"),
        ("redis://256.0.0.1", "bad host '256.0.0.1'; an IPv4 address has four numbers up to 255, as 127.0.0.1"),
        ("redis://127.1", "an IPv4 address"),
        ("redis://1.2.3.4.5", "an IPv4 address"),
        ("redis://127.0.0.1.", "an IPv4 address"),
        ("redis://a..b", "bad host 'a..b'; write a name"),
        ("redis://.a", "bad host '.a'"),
        ("redis://.", "bad host '.'"),
        ("redis://-a", "bad host '-a'"),
        ("redis://a-", "bad host 'a-'"),
        ("redis://${HOST}", "bad host '${HOST}'"),
        ("redis://one,two", "bad host 'one,two'"),
        ("redis://<host>", "bad host '<host>'"),
        ("redis://a;b", "bad host 'a;b'"),
        ("redis://" + "a" * 64, "bad host"),
        ("redis://" + ".".join(["a" * 63] * 4), "bad host"),
        ("redis://" + "ü" * 63, "bad host"),
        ("redis://h/x", "bad database 'x'"),
        ("redis://h/-1", "bad database '-1'"),
        ("redis://h/1/2", "bad database '1/2'"),
        ("redis://h/2147483648", "bad database '2147483648'"),
        ("redis://h?db=x", "bad database 'x'"),
        ("redis://h/1?db=1", "^the database is given twice, after the host and as an option"),
        ("redis://h?db=1&db=2", "'db' is given twice"),
        ("redis://a@h?username=b", "username is given twice"),
        ("redis://:p@h?password=q", "password is given twice"),
        (
            "redis://h?timeot=1",
            "unknown option 'timeot'; did you mean 'timeout'? Known: timeout",
        ),
        ("redis://h?xyzzy=1", "unknown option 'xyzzy'. Known: timeout, "),
        ("redis://h?", None),
        ("redis://h?timeout", "option 'timeout' has no value"),
        ("redis://h?timeout=", "option 'timeout' has no value"),
        ("redis://h?&", "unknown option ''"),
        ("redis://h?timeout=0", "in seconds"),
        ("redis://h?timeout=86400.5", "in seconds"),
        ("redis://h?client_name=%ff", "the option 'client_name' does not decode to UTF-8"),
        ("redis://h?timeout=nan", "in seconds"),
        ("redis://h?timeout=soon", "in seconds"),
        ("redis://h?ssl_certfile=x", "needs TLS; did you mean rediss://"),
        ("unix:///s?ssl_certfile=x", "needs TLS"),
        ("redis://h#x", "^a server's URL has no '#' part; write a '#' in a password as %23"),
        ("redis://h#", "no '#' part"),
        ("redis://a@b@h", "^there is more than one '@' before the host; write one in a password as %40"),
        ("redis://h/@", "^write an '@' after the host as %40, and in a password '/' as %2F and '?' as %3F"),
        ("redis://%ff:a@h", "the user name does not decode"),
        ("unix:///%ff", "the path does not decode"),
        ("memory://%ff", "the name does not decode"),
        ("embedded:///%ff", "the directory does not decode"),
        ("redis://[::1]]:1", "bad IPv6 address"),
        ("redis://a:%zz@h", "password holds a '%' without two hexadecimal digits"),
        ("redis://a:%ff@h", "password does not decode"),
        ("redis://h h", "^a server's URL must not hold spaces or control characters; write a space as %20"),
        ("redis://h\n", "control characters"),
        ("unix://", "did you mean unix:///run/redis.sock?"),
        ("unix:///", "absolute path"),
        ("unix://run/redis.sock", "did you mean unix:///run/redis.sock?"),
        ("unix://X/redis.sock/", "did you mean unix:///X/redis.sock?"),
        ("memory://a/b", "did you mean memory://a?"),
        ("memory:///b", "did you mean memory://name?"),
        ("memory://u:p@a", "no user and no password"),
        ("memory://a?db=1", "unknown option 'db'. Known: none"),
        ("embedded://var/lib", "did you mean embedded:///var/lib?"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_hint(url, told):
    if told is None:
        assert parse_url(url) == parse_url(url.rstrip("?"))
        return
    with pytest.raises(InvalidURL) as caught:
        parse_url(url)
    assert told in "^" + str(caught.value)


@pytest.mark.parametrize("url", [None, b"redis://h", 6379])
def test_a_url_is_a_text(url):
    with pytest.raises(InvalidURL, match=f"must be a str .* got {type(url).__name__}$"):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://alice:s3cret@h/2", "redis://alice@h:6379/2"),
        ("redis://:s3cret@h", "redis://h:6379"),
        ("rediss://a%40b@[::1]:1?password=s3cret", "rediss://a%40b@[::1]:1"),
        ("redis://[fe80::1%25eth0]", "redis://[fe80::1%25eth0]:6379"),
        ("unix://u:s3cret@/run/a%20b?db=1", "unix://u@/run/a%20b?db=1"),
        ("unix:///s", "unix:///s"),
        ("redis://a%2Fb@h", "redis://a%2Fb@h:6379"),
        ("memory://x", "memory://x"),
        ("embedded:///d", "embedded:///d"),
    ],
)
def test_the_form_for_people(url, safe):
    parsed = parse_url(url)
    assert parsed.safe() == safe
    assert "s3cret" not in repr(parsed)


PASSWORD = "Zq9wVx"


@pytest.mark.parametrize("mark", [*list("/?#@:%[] "), "://", "?db=", "/@", "&", "="])
@pytest.mark.parametrize(
    "form",
    ["redis://u:{}@h:6379/0", "redis://:{}@h", "unix://u:{}@/s", "memory://u:{}@m", "u:{}@h", "redis:{}@h"],
)
def test_no_message_repeats_a_password_that_was_not_escaped(form, mark):
    # Both halves are secret; the one before the mark may come to stand anywhere.
    url = form.format(PASSWORD + mark + PASSWORD)
    try:
        parsed = parse_url(url)
        told = parsed.safe() + repr(parsed)
    except InvalidURL as error:
        told = str(error)
    assert PASSWORD not in told


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
hosts = st.sampled_from(["h", "redis.example.com", "10.0.0.1", "[::1]", "[2001:db8::7]"])


@given(
    st.sampled_from(["redis", "rediss", "valkey", "valkeys"]),
    words,
    words,
    hosts,
    st.integers(1, 65535),
    st.integers(0, 2**31 - 1),
)
def test_an_escaped_url_comes_back(scheme, username, password, host, port, db):
    url = f"{scheme}://{quote(username, safe='')}:{quote(password, safe='')}@{host}:{port}/{db}"
    parsed = parse_url(url)
    assert (parsed.username, parsed.password) == (username, password)
    assert (parsed.host, parsed.port, parsed.db) == (host.strip("[]"), port, db)
    again = parse_url(parsed.safe())
    assert (again.username, again.password) == (username, None)
    assert (again.host, again.port, again.db, again.tls) == (parsed.host, port, db, parsed.tls)


@given(words)
def test_a_socket_path_comes_back(name):
    assume("\0" not in name)
    parsed = parse_url(f"unix:///{quote(name, safe='')}")
    assert parsed.path == "/" + name
    assert parse_url(parsed.safe()) == parsed


@given(st.text(st.sampled_from("redisunx:/@?#[]%=&0169. "), max_size=24) | st.text(max_size=24))
def test_anything_else_is_an_invalid_url(text):
    for url in (text, "redis://" + text, "unix://" + text, "memory://" + text, "embedded://" + text):
        try:
            parsed = parse_url(url)
        except InvalidURL:
            continue
        assert parsed.safe().startswith(parsed.scheme + "://")
