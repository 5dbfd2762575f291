"""The control plane under `/admin/v1`: a FastAPI application, a module for each resource."""

from gateway.admin.app import create_admin

__all__ = ["create_admin"]
