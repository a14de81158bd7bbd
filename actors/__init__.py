"""The actors: thin shells that move messages between NATS and the pure cores."""
