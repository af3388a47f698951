"""REST and WebSocket routes."""
