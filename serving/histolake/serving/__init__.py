"""The serving part of histolake."""
