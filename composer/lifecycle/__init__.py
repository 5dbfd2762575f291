"""The life of experts: engines that follow what is registered, verification, draining, removal."""

from composer.lifecycle.controller import Controller
from composer.lifecycle.endpoints import EndpointBoard
from composer.lifecycle.fleet import Fleet
from composer.lifecycle.verification import Verifier

__all__ = ["Controller", "EndpointBoard", "Fleet", "Verifier"]
