"""The ingestion part of histolake."""
