"""The actor runtime over NATS: typed messages, bounded mailboxes, deadlines, supervision, leases."""
