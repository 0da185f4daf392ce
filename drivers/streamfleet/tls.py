"""TLS settings of a URL's ``ssl_`` options, with one meaning for every driver."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TypeVar

from streamfleet_core.errors import InvalidURL

T = TypeVar("T")

_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_VERIFICATION = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def client_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """A client's context: certificates and host names are checked unless the options say otherwise.

    Raises InvalidURL when an option's value is not understood or a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        files = ", ".join(f"{name}={path}" for name, path in sorted(options.items()) if _is_file(name))
        raise InvalidURL(f"cannot use the TLS files {files}: {error}") from error
    verification = _choice(options, "ssl_cert_reqs", "required", _VERIFICATION)
    check_hostname = _choice(options, "ssl_check_hostname", "yes", _YES_NO)
    # ssl insists on this order: a host name cannot be checked without a certificate.
    context.check_hostname = bool(check_hostname) and verification is not ssl.CERT_NONE
    context.verify_mode = verification
    return context


def _is_file(name: str) -> bool:
    return name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def _choice(options: Mapping[str, str], name: str, default: str, choices: Mapping[str, T]) -> T:
    value = options.get(name, default)
    try:
        return choices[value.lower()]
    except KeyError:
        raise InvalidURL(f"{name}={value} is not understood; one of {', '.join(choices)} is") from None
