"""The edge: HTTP, the OpenAI wire format, keys, streaming, the admin API. Never imports torch."""
