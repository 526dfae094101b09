"""The opening handshake, RFC 6455 §4, on h11: from the first byte to the 101, or to another answer.

bytes ─ http_head.HeadReader ─ h11 ─ server_handshake.ServerHandshake ──> Request ──> accept() or reject() ──> bytes
bytes ─ http_head.HeadReader ─ h11 ─ client_handshake.ClientHandshake ──> Response
                              request_checks: the rules
                              handshake_fields: what both sides read

Neither knows sockets or time. What follows the head of a WebSocket is `trailing_data`, the beginning of its frames.
"""

from .client_handshake import ClientHandshake
from .request_checks import Origins
from .server_handshake import ServerHandshake, ServerRules

__all__ = ["ClientHandshake", "Origins", "ServerHandshake", "ServerRules"]
