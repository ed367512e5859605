"""A host's way to the registry: one kept HTTP connection, pinned, never through a proxy."""

from __future__ import annotations

import ssl
from typing import Any, Self

import httpx
import msgspec

from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.api.pool import Joining
from jupyter_gpumarket.config import Secret

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0


class RegistrySays(Exception):
    """The registry refused a call."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RegistryClient:
    """Calls with a bearer token. `certificate` (PEM) is the only one that is trusted; empty for plain HTTP."""

    def __init__(self, url: str, certificate: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, verify=only(certificate) if certificate else True, trust_env=False, follow_redirects=False
        )
        self._token = Secret("")
        self.host_id = ""

    def use_token(self, token: str) -> None:
        """Which token to send from now on."""
        self._token = Secret(token)

    async def call(self, method: str, path: str, body: Any, reply: Any, *, wait_s: float = 0.0) -> Any:
        """One call.

        Raises:
            RegistrySays: it refused, or spoke another language.
            httpx.HTTPError: it could not be reached or did not answer in time.
        """
        if isinstance(body, Joining):
            self.host_id = body.host_id
        answer = await self._http.request(
            method,
            path,
            content=msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {self._token.reveal()}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S + wait_s, connect=CONNECT_TIMEOUT_S),
        )
        try:
            if answer.status_code != 200:
                raise RegistrySays(answer.status_code, msgspec.json.decode(answer.content, type=Problem).message)
            return msgspec.json.decode(answer.content, type=reply)
        except msgspec.DecodeError as error:
            raise RegistrySays(answer.status_code or 502, f"an answer that is not a registry's: {error}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


def only(certificate: str) -> ssl.SSLContext:
    """Trust exactly this certificate, whatever name it is reached by: the pin says more than the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    return context
