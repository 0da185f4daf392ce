"""Server URLs, read strictly: what is not understood is refused, with what was probably meant.

- ``redis://[user:password@]host[:port][/db]``, or ``valkey://``: port 6379 and database 0 when absent
- ``rediss://``, or ``valkeys://``: the same over TLS
- ``unix://[user:password@]/path[?db=1]``: a Unix socket
- ``memory://[name]``: the model server inside this process, one per name
- ``embedded://[/directory]``: a server started from a wheel, which keeps its data in the directory

No message repeats what may be a part of a password, also when the password was not escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, unquote_to_bytes

from streamfleet_core.errors import InvalidURL

DEFAULT_PORT = 6379
MAX_DB = 2**31 - 1
_LONGEST_HOST = 254
"""Characters, with the dot that a name may end with."""

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
OPTIONS = ("timeout", "client_name", *_TLS_OPTIONS, "db", "username", "password")
"""What may stand in the query part of a URL that leads to a server outside this process."""

_TCP = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_LOCAL = ("memory", "embedded")
_SCHEMES = (*_TCP, "unix", *_LOCAL)
_LATER = ("sentinel", "cluster")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
# Letters of any script, for names that the resolver encodes; the underscore is not one of DNS, but of containers.
_LABEL = re.compile(r"\w(?:[\w-]{0,61}\w)?")
# What an interface may be called; a URL takes these characters as they are.
_ZONE = re.compile(r"[\w.~-]{1,64}")
_PORT = re.compile(r"[0-9]{1,5}")
_DB = re.compile(r"[0-9]{1,10}")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class ServerURL:
    """A server's URL in parts, decoded."""

    scheme: str
    host: str = ""
    """Host name or address (IPv6 without brackets, its zone after a ``%``); for ``memory`` the name."""
    port: int = 0
    """0 where there is none."""
    path: str = ""
    """The Unix socket; for ``embedded`` the directory."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: bool = False
    options: dict[str, str] = field(default_factory=dict, hash=False)
    """The query's options but for ``db``, ``username``, ``password``; texts, for the driver to read."""

    def safe(self) -> str:
        """Return the URL for people: without the password, and without the options."""
        who = f"{quote(self.username, safe='')}@" if self.username else ""
        if self.scheme == "unix":
            return f"unix://{who}{quote(self.path)}" + (f"?db={self.db}" if self.db else "")
        if self.scheme in _TCP:
            host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
            return f"{self.scheme}://{who}{host}:{self.port}" + (f"/{self.db}" if self.db else "")
        return f"{self.scheme}://{quote(self.host)}{quote(self.path)}"


def parse_url(url: str) -> ServerURL:
    """Return the parts of a server's URL. Raises InvalidURL."""
    if not isinstance(url, str):
        kind = type(url).__name__
        raise InvalidURL(f"a server's URL must be a str such as 'redis://localhost:6379', got {kind}")
    if not url.isprintable() or " " in url:
        raise InvalidURL("a server's URL must not hold spaces or control characters; write a space as %20")
    scheme = _scheme(url)
    rest, hash_sign, _ = url[len(scheme) + 3 :].partition("#")
    if hash_sign:
        raise InvalidURL("a server's URL has no '#' part; write a '#' in a password as %23")
    rest, _, query = rest.partition("?")
    authority, slash, tail = rest.partition("/")
    if "@" in query or ("@" in tail and authority):
        raise InvalidURL("write an '@' after the host as %40, and in a password '/' as %2F and '?' as %3F")
    userinfo, at, place = authority.rpartition("@")
    options = _options(scheme, query)
    if scheme in _LOCAL:
        return _local(scheme, at, place, slash + tail, options)
    username, password = _credentials(userinfo if at else None, options)
    if scheme == "unix":
        socket = _socket_path(place, slash + tail)
        return ServerURL("unix", "", 0, socket, username, password, _db("", options), False, options)
    host, port = _host_and_port(place)
    return ServerURL(scheme, host, port, "", username, password, _db(tail, options), _TCP[scheme], options)


def _scheme(url: str) -> str:
    before, found, _ = url.partition("://")
    scheme = before.lower()
    if not found or not _SCHEME.fullmatch(scheme):
        # What stands before an @ may be a password, so only what follows it is repeated.
        place = url.rpartition("@")[2].rpartition("://")[2] or "localhost"
        raise InvalidURL(f"the URL has no scheme; did you mean redis://{place}?")
    if before in _SCHEMES:
        return before
    if scheme in _SCHEMES:
        raise InvalidURL(f"the scheme is written in lower case; did you mean {scheme}://?")
    base, _, kind = scheme.partition("+")
    if base in _TCP and kind in _LATER:
        raise InvalidURL(f"{scheme}:// is not supported yet; connect to the primary by {base}://")
    close = get_close_matches(scheme, _SCHEMES, n=1, cutoff=0.5)
    meant = close[0] if close else "redis"
    raise InvalidURL(f"unknown scheme {scheme!r:.40}; did you mean {meant}://? Known: {', '.join(_SCHEMES)}")


def _decoded(text: str, what: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise InvalidURL(f"the {what} holds a '%' without two hexadecimal digits; write the sign as %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidURL(f"the {what} does not decode to UTF-8") from None


def _options(scheme: str, query: str) -> dict[str, str]:
    known = () if scheme in _LOCAL else OPTIONS
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise InvalidURL(f"unknown option {name!r:.40}{hint} Known: {', '.join(known) or 'none'}")
        if not value:
            raise InvalidURL(f"option {name!r} has no value; write {name}=…")
        if name in options:
            raise InvalidURL(f"option {name!r} is given twice")
        if name in _TLS_OPTIONS and not _TCP.get(scheme):
            raise InvalidURL(f"option {name!r} needs TLS; did you mean rediss:// or valkeys://?")
        options[name] = _decoded(value, f"option {name!r}")
    _check_timeout(options.get("timeout", "1"))
    return options


def _check_timeout(text: str) -> None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise InvalidURL(f"option 'timeout' is in seconds, above 0 and up to a day; got {text!r:.40}")


def _credentials(userinfo: str | None, options: dict[str, str]) -> tuple[str | None, str | None]:
    username = password = None
    if userinfo is not None:
        if "@" in userinfo:
            raise InvalidURL("there is more than one '@' before the host; write one in a password as %40")
        name, colon, secret = userinfo.partition(":")
        username = _decoded(name, "user name") or None
        password = _decoded(secret, "password") if colon else None
    for what, given in (("username", username), ("password", password)):
        if what in options and given is not None:
            raise InvalidURL(f"the {what} is given twice, before the host and as an option")
    return options.pop("username", username), options.pop("password", password)


def _host_and_port(place: str) -> tuple[str, int]:
    if place.startswith("["):
        inside, bracket, after = place[1:].partition("]")
        host, zone_sign, zone = inside.partition("%25")
        if bracket and not zone_sign and "%" in host and _is_ipv6(host.partition("%")[0]):
            raise InvalidURL(f"bad IPv6 address {place!r:.80}; write the '%' before its zone as %25")
        if not bracket or not _is_ipv6(host) or (after and after[0] != ":"):
            raise InvalidURL(f"bad IPv6 address {place!r:.80}; write it as [::1]:6379")
        if zone_sign and not _ZONE.fullmatch(zone):
            raise InvalidURL(f"bad zone {zone!r:.40} of an IPv6 address; write it as [fe80::1%25eth0]")
        host, colon, port = host + zone_sign[:1] + zone, after[:1], after[1:]
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise InvalidURL(f"{place!r:.80} has more than one ':'; write an IPv6 address as [::1]:6379")
        _check_host(host)
    if not colon:
        return host, DEFAULT_PORT
    if not _is_port(port):
        raise InvalidURL(
            f"bad port {port!r:.40}; a number from 1 to 65535 is needed, or no ':' for port {DEFAULT_PORT}"
        )
    return host, int(port)


def _check_host(host: str) -> None:
    if not host:
        raise InvalidURL("the URL names no host; did you mean localhost?")
    bad = f"bad host {host!r:.80}"
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        if _is_port(host):
            raise InvalidURL(f"{bad}: it is a number; did you mean localhost:{host}?")
        if not _is_ipv4(host):
            raise InvalidURL(f"{bad}; an IPv4 address has four numbers up to 255, as 127.0.0.1")
    elif len(host) > _LONGEST_HOST or not all(map(_LABEL.fullmatch, labels)) or not _is_encodable(host):
        raise InvalidURL(f"{bad}; write a name such as redis.example.com, or an address: 127.0.0.1, [::1]")


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 0 < int(text) < 65536


def _is_encodable(host: str) -> bool:
    """Whether the resolver can ask for it: names of other scripts become longer."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None  # a zone is read apart, because a URL escapes its sign
    except ValueError:
        return False


def _db(path: str, options: dict[str, str]) -> int:
    option = options.pop("db", None)
    if path and option is not None:
        raise InvalidURL("the database is given twice, after the host and as an option")
    text = path or ("0" if option is None else option)
    if not _DB.fullmatch(text) or int(text) > MAX_DB:
        raise InvalidURL(f"bad database {text!r:.40}; a number is needed, as in redis://localhost:6379/1")
    return int(text)


def _socket_path(place: str, path: str) -> str:
    if place or path in ("", "/"):
        meant = (place + path).strip("/") or "run/redis.sock"
        raise InvalidURL(f"unix:// takes an absolute path; did you mean unix:///{meant}?")
    return _decoded(path, "path")


def _local(scheme: str, at: str, name: str, path: str, options: dict[str, str]) -> ServerURL:
    if at:
        raise InvalidURL(f"{scheme}:// takes no user and no password")
    if scheme == "memory" and path not in ("", "/"):
        raise InvalidURL(f"memory:// takes a name without slashes; did you mean memory://{name or 'name'}?")
    if scheme == "embedded" and name:
        raise InvalidURL(f"embedded:// takes an absolute directory; did you mean embedded:///{name}{path}?")
    directory = _decoded(path, "directory") if scheme == "embedded" else ""
    return ServerURL(scheme, host=_decoded(name, "name"), path=directory, options=options)
