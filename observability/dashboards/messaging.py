"""*Messaging*: do messages arrive, and is usage written down?"""

from __future__ import annotations

from typing import Any

from observability.dashboards.panels import Panel, Query, dashboard, quantiles, row, stat, timeseries

__all__ = ["messaging"]


def messaging() -> dict[str, Any]:
    return dashboard(
        "headgate-messaging",
        "Headgate / Messaging",
        "Do messages arrive, and is usage written down?",
        *_at_a_glance(),
        *_actors(),
        *_nats(),
        *_ledger(),
        tags=["messaging"],
    )


def _at_a_glance() -> tuple[Panel, ...]:
    return (
        stat(
            "Processes",
            "That answer Prometheus.",
            Query("sum(headgate_up)"),
            unit="none",
        ),
        stat(
            "Without NATS",
            "Processes that have no connection now.",
            Query("sum(headgate_nats_connected == bool 0)"),
            unit="none",
            limits=(1,),
        ),
        stat(
            "Full mailboxes",
            "Messages answered Busy, in an hour.",
            Query("sum(increase(headgate_mailbox_refused_total[1h]))"),
            unit="none",
            limits=(1, 100),
        ),
        stat(
            "Dead letters",
            "Messages that nobody handled, in an hour.",
            Query("sum(increase(headgate_dead_letters_total[1h]))"),
            unit="none",
            limits=(100, 1000),
        ),
        stat(
            "Ledger lag",
            "Records of usage and changes that are not in the database yet.",
            Query("sum(headgate_ledger_lag_messages)"),
            unit="none",
            limits=(100, 1000),
        ),
        stat(
            "Unsettled",
            "Requests that were written ahead and are not settled: those under way, and those whose gateway died.",
            Query("max(headgate_ledger_unsettled)"),
            unit="none",
        ),
    )


def _actors() -> tuple[Panel, ...]:
    return (
        row("Actors"),
        timeseries(
            "Mailboxes",
            "Share of the mailbox that is taken. When it is full, messages are answered Busy.",
            Query("max by (actor) (headgate_mailbox_depth / headgate_mailbox_capacity)", "{{actor}}"),
            unit="percentunit",
            most=1,
            limits=(0.5, 0.9),
        ),
        timeseries(
            "Refused: mailbox full",
            "Messages answered Busy.",
            Query("sum by (actor) (rate(headgate_mailbox_refused_total[$__rate_interval]))", "{{actor}}"),
            unit="ops",
        ),
        timeseries(
            "Dead letters, by reason",
            "Handled by nobody. expired: its time was over; stale-epoch: from one that was replaced; no-route: nobody "
            "was there; unsent: no connection.",
            Query("sum by (reason) (rate(headgate_dead_letters_total[$__rate_interval]))", "{{reason}}"),
            unit="ops",
            stacked=True,
        ),
        timeseries(
            "Lost on the way",
            "As the numbers of messages tell. Core NATS may lose them; streams and steps are repaired.",
            Query("sum by (actor) (rate(headgate_messages_missed_total[$__rate_interval]))", "{{actor}}"),
            unit="ops",
        ),
        timeseries(
            "Age of heartbeats, by role",
            "The oldest of each role; one comes every 0.2 s.",
            Query("max by (role) (headgate_heartbeat_age_seconds)", "{{role}}"),
            unit="s",
            limits=(0.6, 1),
        ),
        timeseries(
            "Epochs of leases",
            "A step up is a takeover: a process was replaced by its successor or standby.",
            Query("max by (actor) (headgate_lease_epoch)", "{{actor}}"),
            unit="none",
        ),
    )


def _nats() -> tuple[Panel, ...]:
    def rate(metric: str, legend: str) -> Query:
        return Query(f"sum by (server) (rate({metric}[$__rate_interval]))", legend)

    return (
        row("NATS"),
        timeseries(
            "Messages",
            "Taken and delivered by each server.",
            rate("headgate_nats_server_in_messages_total", "{{server}} in"),
            rate("headgate_nats_server_out_messages_total", "{{server}} out"),
            unit="ops",
        ),
        timeseries(
            "Bytes",
            "Of these messages.",
            rate("headgate_nats_server_in_bytes_total", "{{server}} in"),
            rate("headgate_nats_server_out_bytes_total", "{{server}} out"),
            unit="Bps",
        ),
        timeseries(
            "Connections",
            "Clients of each server, and connections made again by processes.",
            Query("sum by (server) (headgate_nats_server_connections)", "{{server}}"),
            Query("sum by (actor) (increase(headgate_nats_reconnects_total[5m]))", "{{actor}} made again"),
            unit="none",
        ),
        timeseries(
            "Servers",
            "1: its monitor answers.",
            Query("min by (server) (headgate_nats_server_up)", "{{server}}"),
            unit="none",
            most=1,
            limits=(1,),
            falling=True,
        ),
        timeseries(
            "Kept by servers",
            "Resident memory, and what JetStream keeps on disk and in memory.",
            Query("sum by (server) (headgate_nats_server_memory_bytes)", "{{server}} resident"),
            Query("sum by (server, kind) (headgate_nats_server_jetstream_bytes)", "{{server}} JetStream {{kind}}"),
            unit="bytes",
        ),
        timeseries(
            "Cut off for being slow",
            "Clients that did not read fast enough. What they missed is repaired, and streams pause.",
            Query("sum by (server) (increase(headgate_nats_server_slow_consumers_total[5m]))", "{{server}}"),
            unit="none",
            limits=(1,),
        ),
    )


def _ledger() -> tuple[Panel, ...]:
    return (
        row("Ledger"),
        timeseries(
            "Lag",
            "Records in the streams that are not in the database.",
            Query("max by (stream) (headgate_ledger_lag_messages)", "{{stream}}"),
            unit="none",
            limits=(1000,),
        ),
        timeseries(
            "Records folded",
            "A record of usage is written when a request begins, and one when it ends.",
            Query("sum by (stream) (rate(headgate_ledger_batch_records_sum[$__rate_interval]))", "{{stream}}"),
            unit="ops",
        ),
        timeseries(
            "Time of a transaction",
            "Of a batch of records, waiting for the database included. 0: there was none.",
            *quantiles("headgate_ledger_fold_seconds", 0.5, 0.99, or_zero=True),
            unit="s",
        ),
        timeseries(
            "Unsettled",
            "Requests that were written ahead and are not settled.",
            Query("max(headgate_ledger_unsettled)", "requests"),
            unit="none",
        ),
        timeseries(
            "Unreadable",
            "Usage records left out, in five minutes: they are in the log of the ledger.",
            Query("sum(increase(headgate_ledger_unreadable_total[5m]))", "records"),
            unit="none",
            limits=(1,),
        ),
    )
