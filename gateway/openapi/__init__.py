"""The OpenAPI document of the whole gateway, and the page of documentation made from it."""

from gateway.openapi.document import document, document_body

__all__ = ["document", "document_body"]
