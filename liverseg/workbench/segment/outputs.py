"""Write what is asked for beside the mask."""

from __future__ import annotations
