"""The web page at `/dashboard`: files only. All that it shows it asks of the admin API."""

from gateway.dashboard.pages import PREFIX as DASHBOARD
from gateway.dashboard.pages import Dashboard

__all__ = ["DASHBOARD", "Dashboard"]
