"""The tables of the archive; what a row of each means is in the room's page. Applied scripts are never edited, only followed."""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('changes', 0);
    CREATE TABLE report (
        device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        created_ms INTEGER NOT NULL, received_ms INTEGER NOT NULL, carrier TEXT NOT NULL,
        hash BLOB NOT NULL, previous BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (device, epoch, seq)
    ) WITHOUT ROWID;
    CREATE INDEX report_by_age ON report (created_ms);
    CREATE TABLE stream (
        device TEXT NOT NULL, epoch INTEGER NOT NULL,
        contiguous INTEGER NOT NULL, head BLOB NOT NULL, highest INTEGER NOT NULL,
        PRIMARY KEY (device, epoch)
    ) WITHOUT ROWID;
    CREATE TABLE conflict (
        device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
        received_ms INTEGER NOT NULL, carrier TEXT NOT NULL,
        PRIMARY KEY (device, epoch, seq, hash)
    ) WITHOUT ROWID;
    CREATE TABLE device (
        device TEXT PRIMARY KEY, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        site TEXT NOT NULL, hostname TEXT NOT NULL, agent_version TEXT NOT NULL,
        os TEXT NOT NULL, os_version TEXT NOT NULL, arch TEXT NOT NULL,
        created_ms INTEGER NOT NULL, received_ms INTEGER NOT NULL, reported_ms INTEGER NOT NULL, carrier TEXT NOT NULL,
        trust_state TEXT NOT NULL, trust_reason TEXT NOT NULL, trust_root INTEGER NOT NULL, trust_timestamp INTEGER NOT NULL,
        trust_snapshot INTEGER NOT NULL, trust_targets INTEGER NOT NULL,
        passed INTEGER NOT NULL, failed INTEGER NOT NULL, errors INTEGER NOT NULL, not_run INTEGER NOT NULL,
        not_applicable INTEGER NOT NULL, manual INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX device_by_site ON device (site);
    CREATE TABLE device_policy (
        device TEXT NOT NULL, policy TEXT NOT NULL, version INTEGER NOT NULL, mode TEXT NOT NULL,
        PRIMARY KEY (device, policy)
    ) WITHOUT ROWID;
    CREATE TABLE finding (
        device TEXT NOT NULL, policy TEXT NOT NULL, check_id TEXT NOT NULL, policy_version INTEGER NOT NULL,
        state TEXT NOT NULL, severity TEXT NOT NULL, title TEXT NOT NULL,
        expected TEXT NOT NULL, actual TEXT NOT NULL, message TEXT NOT NULL,
        decided TEXT NOT NULL, decided_at_ms INTEGER NOT NULL, last_attempt_ms INTEGER NOT NULL,
        PRIMARY KEY (device, policy, check_id)
    ) WITHOUT ROWID;
    CREATE INDEX finding_by_check ON finding (policy, check_id, state);
    CREATE TABLE release (
        device TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL, since_ms INTEGER NOT NULL,
        detail TEXT NOT NULL, size_bytes INTEGER NOT NULL, needed_bytes INTEGER NOT NULL,
        wan_in_bytes INTEGER NOT NULL, lan_in_bytes INTEGER NOT NULL,
        PRIMARY KEY (device, name, version)
    ) WITHOUT ROWID;
    CREATE INDEX release_by_name ON release (name, version, state);
    CREATE TABLE usage (
        device TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, site TEXT NOT NULL, needed_bytes INTEGER NOT NULL,
        wan INTEGER NOT NULL, lan_in INTEGER NOT NULL, lan_out INTEGER NOT NULL,
        new_wan INTEGER NOT NULL, new_lan_in INTEGER NOT NULL, new_lan_out INTEGER NOT NULL,
        PRIMARY KEY (device, name, version, epoch, seq)
    ) WITHOUT ROWID;
    CREATE TABLE completion (
        device TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
        epoch INTEGER NOT NULL, seq INTEGER NOT NULL, at_ms INTEGER NOT NULL, site TEXT NOT NULL, size_bytes INTEGER NOT NULL,
        PRIMARY KEY (device, name, version)
    ) WITHOUT ROWID;
    CREATE TABLE moved (
        site TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, device TEXT NOT NULL,
        wan INTEGER NOT NULL, lan_in INTEGER NOT NULL, plain INTEGER NOT NULL, needed_bytes INTEGER NOT NULL,
        PRIMARY KEY (site, name, version, device)
    ) WITHOUT ROWID;
    CREATE TABLE moved_in_time (
        site TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, bucket INTEGER NOT NULL,
        wan INTEGER NOT NULL, lan_in INTEGER NOT NULL, plain INTEGER NOT NULL,
        PRIMARY KEY (site, name, version, bucket)
    ) WITHOUT ROWID;
    CREATE TABLE change (
        device TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (device, epoch, seq, ordinal)
    ) WITHOUT ROWID;
    CREATE INDEX change_by_time ON change (at_ms);
    CREATE TABLE sighting (
        device TEXT PRIMARY KEY, site TEXT NOT NULL, first_seen_ms INTEGER NOT NULL, last_seen_ms INTEGER NOT NULL,
        seen_by TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    # Sums of ``usage`` and ``completion``, kept by the database itself: whatever writes those tables, the sums follow.
    """
    CREATE TRIGGER usage_told AFTER INSERT ON usage WHEN new.name <> '' BEGIN
        INSERT INTO moved VALUES (new.site, new.name, new.version, new.device, 0, 0, 0, new.needed_bytes)
        ON CONFLICT DO UPDATE SET needed_bytes = max(needed_bytes, excluded.needed_bytes);
    END;
    CREATE TRIGGER usage_grown AFTER UPDATE OF new_wan, new_lan_in ON usage
    WHEN new.name <> '' AND (new.new_wan <> old.new_wan OR new.new_lan_in <> old.new_lan_in) BEGIN
        UPDATE moved SET wan = wan + new.new_wan - old.new_wan, lan_in = lan_in + new.new_lan_in - old.new_lan_in
        WHERE site = new.site AND name = new.name AND version = new.version AND device = new.device;
        INSERT INTO moved_in_time VALUES (
            new.site, new.name, new.version, new.at_ms / 10000,
            new.new_wan - old.new_wan, new.new_lan_in - old.new_lan_in, 0
        ) ON CONFLICT DO UPDATE SET wan = wan + excluded.wan, lan_in = lan_in + excluded.lan_in;
    END;
    CREATE TRIGGER completion_told AFTER INSERT ON completion BEGIN
        INSERT INTO moved VALUES (new.site, new.name, new.version, new.device, 0, 0, new.size_bytes, 0)
        ON CONFLICT DO UPDATE SET plain = plain + excluded.plain;
        INSERT INTO moved_in_time VALUES (new.site, new.name, new.version, new.at_ms / 10000, 0, 0, new.size_bytes)
        ON CONFLICT DO UPDATE SET plain = plain + excluded.plain;
    END;
    CREATE TRIGGER completion_changed AFTER UPDATE ON completion BEGIN
        UPDATE moved SET plain = plain - old.size_bytes
        WHERE site = old.site AND name = old.name AND version = old.version AND device = old.device;
        UPDATE moved_in_time SET plain = plain - old.size_bytes
        WHERE site = old.site AND name = old.name AND version = old.version AND bucket = old.at_ms / 10000;
        INSERT INTO moved VALUES (new.site, new.name, new.version, new.device, 0, 0, new.size_bytes, 0)
        ON CONFLICT DO UPDATE SET plain = plain + excluded.plain;
        INSERT INTO moved_in_time VALUES (new.site, new.name, new.version, new.at_ms / 10000, 0, 0, new.size_bytes)
        ON CONFLICT DO UPDATE SET plain = plain + excluded.plain;
    END;
    """,
    # Who is on the fleet's deny list, as the collector last read it, and how many of their reports were refused since.
    """
    CREATE TABLE revoked (
        device TEXT PRIMARY KEY, since_ms INTEGER NOT NULL, reason TEXT NOT NULL, refused INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    # Proof, kept on a device, that a role signed one version twice; as its latest report says.
    """
    CREATE TABLE fork (
        device TEXT NOT NULL, role TEXT NOT NULL, version INTEGER NOT NULL, digests TEXT NOT NULL, seen_ms INTEGER NOT NULL,
        PRIMARY KEY (device, role, version)
    ) WITHOUT ROWID;
    """,
    # A device saw that two devices use the identity of ``subject``; as its latest report says.
    """
    CREATE TABLE clone (device TEXT NOT NULL, subject TEXT NOT NULL, PRIMARY KEY (device, subject)) WITHOUT ROWID;
    CREATE INDEX clone_by_subject ON clone (subject);
    """,
    # What of the signed documents a device could not use or set aside, a sentence each; as its latest report says.
    """
    CREATE TABLE problem (
        device TEXT NOT NULL, place INTEGER NOT NULL, said TEXT NOT NULL, PRIMARY KEY (device, place)
    ) WITHOUT ROWID;
    """,
)

BUCKET_S = 10
"""Seconds in a bucket of ``moved_in_time`` (choice: a small release crosses an office in less than a minute)."""
