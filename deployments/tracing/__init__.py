"""Spans of OpenTelemetry below those that Serve makes: `spans`, and where they go: `otlp`."""
