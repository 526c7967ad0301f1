"""The catalogue of attacks: what somebody could try, what becomes of it, and the test that tries it.

``python tests/trust/attacks.py`` prints it as the table of SECURITY.md. ``test_attack_catalogue`` keeps it true: no number is
left out, every test that is named exists, and the table of SECURITY.md is this one.

Numbers without a dot are families of attacks on TUF clients (rollback, freeze, mix-and-match, …), those that begin with ``10.``
are what the whole product is tried with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attacker = Literal[
    "carrier",
    "online keys",
    "site key",
    "one authority",
    "member",
    "stranger",
    "disk",
    "clock",
    "relay",
    "signer's machine",
]
"""carrier: origin, mirror or peer, believed in nothing. online keys: who stole those of the publisher. site key: who stole that
of a site or team. one authority: a signer below the threshold. member: an enrolled device. stranger: anybody on the network.
disk, clock: nobody's malice, or that of who holds the machine. relay: who carries reports. signer's machine: who alters files
on it."""


@dataclass(frozen=True)
class Attack:
    """``tests``: below ``tests/``, as pytest names them; several where several layers refuse it."""

    id: str
    name: str
    attacker: Attacker
    outcome: str
    tests: tuple[str, ...]


CLIENT = "trust/test_client.py::"
KNOWN = "trust/test_client_attacks.py::"
VERSIONS = "trust/test_attacks_versions.py::"
DELIVERY = "trust/test_attacks_delivery.py::"
SOCKETS = "trust/test_attacks_sockets.py::"
CRASHES = "trust/test_client_crashes.py::"
DELEGATION = "trust/test_delegation.py::"
LINT = "trust/test_lint.py::"

ATTACKS: tuple[Attack, ...] = (
    Attack("1a", "an older timestamp is replayed", "carrier", "older: nothing changes, nobody is blamed", (
        VERSIONS + "test_rollback_is_refused", KNOWN + "test_an_older_timestamp_is_no_news_and_no_crime",
        SOCKETS + "test_a_member_that_lies_over_tls")),
    Attack("1b", "a newer timestamp names an older snapshot", "online keys", "refused", (
        VERSIONS + "test_rollback_is_refused", SOCKETS + "test_a_member_that_lies_over_tls")),
    Attack("1c", "a newer snapshot names older targets", "online keys", "refused", (
        VERSIONS + "test_rollback_is_refused", DELEGATION + "test_who_stole_the_online_keys_takes_no_site_back")),
    Attack("1d", "a newer snapshot drops a role", "online keys", "refused", (
        VERSIONS + "test_rollback_is_refused", SOCKETS + "test_a_member_that_lies_over_tls",
        DELEGATION + "test_who_stole_the_online_keys_takes_no_site_back")),
    Attack("2a", "nothing new is delivered, all in date", "carrier", "not to be told from silence; ends with 2b", (
        KNOWN + "test_freeze_is_noticed_by_the_clock",)),
    Attack("2b", "nothing new is delivered until the timestamp ends", "carrier", "stale, then frozen; stays enforced", (
        KNOWN + "test_freeze_is_noticed_by_the_clock", CLIENT + "test_the_boundaries_of_freshness")),
    Attack("2c", "an expired snapshot under a fresh timestamp", "online keys", "expired: refused", (
        VERSIONS + "test_an_expired_document_is_refused_even_when_all_else_is_fresh",)),
    Attack("2d", "a site's document has expired", "site key", "its last content stays, nothing new of it", (
        DELEGATION + "test_a_site_that_lets_its_document_expire", DELEGATION + "test_an_expired_document_is_not_taken_for_new")),
    Attack("2e", "root has expired", "carrier", "refused; a renewed root heals without a visit", (
        VERSIONS + "test_an_expired_root_is_refused_and_a_renewed_one_heals_without_a_visit",)),
    Attack("3", "genuine documents of different times or roles are mixed", "carrier", "refused", (
        VERSIONS + "test_a_genuine_document_in_the_place_of_another", KNOWN + "test_mix_and_match",
        DELEGATION + "test_a_carrier_that_swaps_a_document_of_a_site", SOCKETS + "test_a_member_that_lies_over_tls")),
    Attack("4a", "signatures of strangers", "carrier", "refused", (
        KNOWN + "test_wrong_signers", KNOWN + "test_a_timestamp_by_an_unknown_key",
        SOCKETS + "test_an_origin_that_lies_over_http")),
    Attack("4b", "one signature of two", "one authority",
        "refused", (KNOWN + "test_one_of_two_signatures_and_one_twice",)),
    Attack("4c", "one good signature and one of a stranger", "one authority", "refused", (
        VERSIONS + "test_one_good_signature_and_one_of_a_stranger_are_one",
        VERSIONS + "test_a_signature_under_the_name_of_another_key_counts_for_nobody")),
    Attack("4d", "one signature twice", "one authority",
        "refused", (KNOWN + "test_one_of_two_signatures_and_one_twice",)),
    Attack("4e", "one key under two ids", "one authority", "refused by lint, at the device and in the tool", (
        KNOWN + "test_one_key_under_two_ids_does_not_make_two_people", LINT + "test_a_root_against_a_rule",
        LINT + "test_a_delegation_against_a_rule")),
    Attack("4f", "a site's document by the key of another", "site key", "refused for that site alone", (
        DELEGATION + "test_a_bad_document_of_a_site", DELEGATION + "test_a_document_with_one_signature_of_two")),
    Attack("5", "a site signs paths of the fleet or of another site", "site key", "never used", (
        DELEGATION + "test_what_a_site_signs_outside_its_folder_is_never_used",
        DELEGATION + "test_an_index_of_a_site_that_lists_what_is_not_its_own",
        DELEGATION + "test_a_site_that_delegates_further")),
    Attack("5b", "a target's path climbs out of its folder", "site key", "refused by lint", (
        DELEGATION + "test_a_path_that_climbs_within_the_pattern_of_a_site", KNOWN + "test_a_target_that_leaves_its_folder")),
    Attack("6a", "endless root or timestamp", "carrier", "read to the bound and no further", (
        DELIVERY + "test_endless_data_is_read_no_further_than_the_bound",
        SOCKETS + "test_an_origin_that_stalls_drips_or_never_ends_over_http",
        SOCKETS + "test_a_member_that_stalls_drips_or_never_ends_over_tls")),
    Attack("6b", "endless snapshot, targets or target file", "carrier", "read to the signed length and no further", (
        DELIVERY + "test_endless_data_is_read_no_further_than_the_bound",)),
    Attack("6c", "a target is cut short", "carrier",
        "refused", (DELIVERY + "test_a_target_that_is_not_what_was_signed",)),
    Attack("6d", "a target is swapped", "carrier", "refused", (
        DELIVERY + "test_a_target_that_is_not_what_was_signed", SOCKETS + "test_an_origin_that_lies_over_http")),
    Attack("6e", "data comes drop by drop", "carrier", "cut at the deadline; the next source is asked", (
        DELIVERY + "test_a_slow_carrier_is_cut_at_the_deadline_and_the_next_one_serves",
        KNOWN + "test_slow_drip_ends_at_the_deadline")),
    Attack("7", "no metadata at all, or strange fields in signed ones", "carrier", "refused, never a crash", (
        DELIVERY + "test_what_is_no_metadata", KNOWN + "test_junk",
        DELIVERY + "test_a_signed_document_with_a_strange_field_never_breaks_the_device")),
    Attack("9a", "a root without the old threshold", "one authority", "refused, and not kept", (
        VERSIONS + "test_a_root_needs_the_old_threshold_and_the_new",)),
    Attack("9b", "a root without the new threshold", "one authority", "refused, and not kept", (
        VERSIONS + "test_a_root_needs_the_old_threshold_and_the_new",)),
    Attack("9c", "a root that skips a version", "carrier", "refused", (
        VERSIONS + "test_a_root_of_another_version_in_the_place_of_the_next", KNOWN + "test_a_skipped_root_version")),
    Attack("9d", "a root of the same version", "carrier", "refused", (
        VERSIONS + "test_a_root_of_another_version_in_the_place_of_the_next",)),
    Attack("9e", "a root by both thresholds", "carrier", "accepted: it is no attack", (
        VERSIONS + "test_a_root_needs_the_old_threshold_and_the_new",)),
    Attack("9g", "documents by a targets key that root took away", "one authority",
        "refused; what was in force stays", (
        VERSIONS + "test_a_targets_key_that_was_taken_away_signs_nothing_any_more",
        DELEGATION + "test_a_stolen_site_key_is_worthless_once_the_centre_took_it_away")),
    Attack("9h", "the newer root is hidden", "carrier", "nothing new; healed by any other source", (
        VERSIONS + "test_a_hidden_root_costs_time_and_any_other_source_heals",)),
    Attack("10a", "the newest peer is incomplete", "carrier", "nothing of it is kept", (
        KNOWN + "test_incomplete_newest_then_older_then_newest",)),
    Attack("10b", "then an older, complete one", "carrier", "accepted, and the newest after it", (
        KNOWN + "test_incomplete_newest_then_older_then_newest",)),
    Attack("12a", "the timestamp's version is driven to its end", "online keys", "accepted: locked out until 12c", (
        VERSIONS + "test_a_fast_forward_of_the_timestamp_alone_is_healed_by_its_new_key",)),
    Attack("12b", "the honest timestamp after 12a", "online keys", "older: refused", (
        VERSIONS + "test_a_fast_forward_of_the_timestamp_alone_is_healed_by_its_new_key",)),
    Attack("12c", "root names a new timestamp key after 12a", "online keys", "healed", (
        VERSIONS + "test_a_fast_forward_of_the_timestamp_alone_is_healed_by_its_new_key",)),
    Attack("12d", "snapshot and timestamp driven to their ends", "online keys", "accepted: locked out until 12h", (
        VERSIONS + "test_a_fast_forward_of_both_is_healed_by_both_new_keys_and_not_by_one",)),
    Attack("12e", "the honest documents after 12d", "online keys", "older: refused", (
        KNOWN + "test_new_online_keys_heal_a_fast_forward",)),
    Attack("12f", "only the timestamp key is replaced after 12d", "online keys", "not healed", (
        VERSIONS + "test_a_fast_forward_of_both_is_healed_by_both_new_keys_and_not_by_one",)),
    Attack("12g", "only the snapshot key is replaced after 12d", "online keys", "not healed", (
        VERSIONS + "test_a_fast_forward_of_both_is_healed_by_both_new_keys_and_not_by_one",)),
    Attack("12h", "both online keys are replaced after 12d", "online keys", "healed", (
        VERSIONS + "test_a_fast_forward_of_both_is_healed_by_both_new_keys_and_not_by_one",
        KNOWN + "test_new_online_keys_heal_a_fast_forward")),
    Attack("12i", "two states with one version", "online keys", "the first stays; both are kept as evidence and told", (
        KNOWN + "test_equal_version_with_another_digest_is_kept_as_evidence", SOCKETS + "test_a_member_that_lies_over_tls",
        DELEGATION + "test_two_documents_of_a_site_with_one_version_are_evidence")),
    Attack("13f", "the clock says 1970", "clock", "time is learned from what is signed, and only goes forward", (
        KNOWN + "test_a_clock_of_1970_learns_the_time_and_does_not_fall_for_the_past",)),
    Attack("14", "documents of another fleet that shares keys", "carrier",
        "refused by lint, and its root is not kept", (
        KNOWN + "test_a_foreign_fleet_with_the_same_keys_shuts_nobody_out",
        KNOWN + "test_targets_of_a_foreign_fleet_with_the_same_keys", SOCKETS + "test_a_member_that_lies_over_tls")),
    Attack("15a", "forty delegations before the one that matters", "one authority",
        "each site has its own folder; overlaps are refused", (
        DELEGATION + "test_40_sites_are_40_folders", LINT + "test_a_delegation_against_a_rule")),
    Attack("15c", "one site's document is bad", "site key", "other sites and the fleet are not touched", (
        DELEGATION + "test_a_bad_document_of_a_site",)),
    Attack("15d", "a good document of a site, then a bad one", "site key", "the good one stays in force", (
        DELEGATION + "test_a_bad_document_of_a_site",)),
    Attack("15e", "a site's document is withheld", "carrier", "the last one stays; the next source brings it", (
        DELEGATION + "test_what_a_carrier_withholds_of_a_site_the_next_one_brings",
        DELEGATION + "test_a_carrier_that_is_slow_with_one_site_costs_one_deadline")),
    Attack("15f", "a site key that the centre took away", "site key", "worthless at once", (
        DELEGATION + "test_a_stolen_site_key_is_worthless_once_the_centre_took_it_away",
        DELEGATION + "test_what_only_a_revoked_key_signed_stays_in_force_nowhere")),
    Attack("16", "an old pin over a newer chain; a pin of another fleet over it", "disk",
        "goes on from the chain; starts clean", (
        VERSIONS + "test_a_pin_of_the_beginning_over_a_chain_that_went_on_walks_from_the_chain",
        VERSIONS + "test_a_pin_of_an_unrelated_fleet_over_an_old_folder_starts_clean")),
    Attack("md5", "a target whose only hash is MD5", "one authority", "refused by lint", (
        KNOWN + "test_a_target_by_md5_alone", LINT + "test_targets_against_a_rule")),
    Attack("junk", "padding and thousands of false signatures", "carrier",
        "refused where bound by hash, else bounded", (
        DELIVERY + "test_not_a_byte_can_be_added_to_what_is_bound_by_length_and_hash",
        DELIVERY + "test_junk_around_what_nothing_binds_is_bounded")),
    Attack("10.1", "what the library lets pass: 4e, 5b, md5, 14, junk", "carrier", "refused by lint", (
        LINT + "test_a_root_against_a_rule", LINT + "test_targets_against_a_rule",
        LINT + "test_online_documents_bind_what_they_name")),
    Attack("10.2", "1a–1d after a restart, and after a kill at every step of a swap", "online keys", "refused", (
        VERSIONS + "test_rollback_is_refused", VERSIONS + "test_rollback_is_refused_after_a_kill_at_any_step_of_the_swap",
        CRASHES + "test_killed_at_any_step_the_view_is_the_old_or_the_new")),
    Attack("10.3", "incomplete newest, older complete, newest", "carrier", "accepted in the end, each step whole", (
        KNOWN + "test_incomplete_newest_then_older_then_newest",)),
    Attack("10.4", "a byte a second; nothing after the head; nothing after 99 %", "carrier",
        "cut at the deadline, the next serves", (
        DELIVERY + "test_a_slow_carrier_is_cut_at_the_deadline_and_the_next_one_serves",
        SOCKETS + "test_an_origin_that_stalls_drips_or_never_ends_over_http",
        SOCKETS + "test_a_member_that_stalls_drips_or_never_ends_over_tls",
        KNOWN + "test_each_file_just_in_time_ends_at_the_deadline_of_the_attempt")),
    Attack("10.5", "a second daemon on the same state", "disk", "refuses to start", (
        CLIENT + "test_a_second_process_is_refused",
        "daemon/test_disasters.py::test_a_second_daemon_is_refused_a_taken_port_is_named_and_sigterm_ends_with_a_bye")),
    Attack("10.6", "zeroed, cut or missing files of the state", "disk",
        "no older version comes back; what is left is frozen until it is healed", (
        CRASHES + "test_no_damaged_file_lets_an_old_version_back",
        CRASHES + "test_what_is_left_of_an_older_version_stays_and_installs_nothing_until_it_is_healed",
        "daemon/test_disasters.py::test_state_that_was_half_written_is_started_from_and_heals")),
    Attack("10.7", "clock at 1970, two years on, or jumping back within an attempt", "clock",
        "the floor holds; nothing is un-enforced", (
        KNOWN + "test_a_clock_of_1970_learns_the_time_and_does_not_fall_for_the_past",
        KNOWN + "test_a_clock_two_years_ahead_accepts_nothing_and_recovers",
        VERSIONS + "test_a_clock_that_jumps_back_in_the_middle_of_an_attempt_unlocks_nothing")),
    Attack("10.8", "fresh, stale and frozen at their boundaries", "clock", "to the second", (
        CLIENT + "test_the_boundaries_of_freshness", CLIENT + "test_who_is_stale_accepts_newer_that_is_stale_and_no_more")),
    Attack("10.9", "equal version, other digest", "online keys", "evidence of each role is kept, bounded, and told by gossip", (
        KNOWN + "test_equal_version_with_another_digest_is_kept_as_evidence",
        KNOWN + "test_whoever_has_a_key_cannot_use_up_the_place_of_other_evidence",
        "gossip/test_spread.py::test_the_same_version_with_another_hash_is_a_fork_and_reported_once_per_version")),
    Attack("10.10", "root hidden by 404, 403, 500 or silence", "carrier", "nothing new; healed by any other source", (
        VERSIONS + "test_a_hidden_root_costs_time_and_any_other_source_heals",)),
    Attack("10.11", "three hundred roots", "carrier", "followed over two attempts", (
        VERSIONS + "test_more_roots_than_one_attempt_follows_arrive_with_the_next",)),
    Attack("10.12", "forty overlapping delegations", "one authority", "refused by lint", (
        LINT + "test_a_delegation_against_a_rule", DELEGATION + "test_40_sites_are_40_folders")),
    Attack("10.13", "two thousand mutations of all files", "carrier",
        "a verdict each; accepted only with the genuine signed part", (
        DELIVERY + "test_two_thousand_mutations_end_in_a_verdict_and_accept_only_what_was_signed",
        "fuzz/test_fuzz.py::test_a_few_mutations_of_what_is_dear_to_decode")),
    Attack("10.14", "the signed time is driven into the future", "online keys",
        "stale at worst: bounded by the first expiry; healed by new keys", (
        KNOWN + "test_a_timestamp_cannot_lift_time_beyond_its_own_end", KNOWN + "test_new_online_keys_heal_a_stolen_future")),
    Attack("10.15", "a site's own repository: re-keyed, revoked, signing for the fleet", "site key",
        "old keys worthless; fleet paths unheard", (
        "daemon/test_site_repository.py::test_another_root_in_the_fleet_drops_what_was_trusted_and_makes_old_keys_worthless",
        "daemon/test_site_repository.py::test_whatever_else_a_site_signs_is_not_heard",
        "daemon/test_site_repository.py::test_a_root_that_is_listed_no_longer_ends_the_sites_say_and_listed_again_it_goes_back_to_nothing_older",
        "policy/test_precedence.py::test_whatever_a_site_signs_a_device_is_never_milder_than_the_fleet_alone_makes_it")),
    Attack("10.16", "a publisher restored from a backup", "disk", "refuses to sign lower", (
        "authority/test_publish.py::test_a_restored_backup_is_refused",
        "authority/test_publish.py::test_another_copy_of_the_folder_is_refused")),
    Attack("10.17", "a chunk of the right length with wrong bytes", "member", "dropped, blamed, fetched elsewhere", (
        "swarm/test_fetcher.py::test_wrong_bytes_are_blamed_and_fetched_elsewhere",
        "daemon/test_disasters.py::test_a_neighbour_that_sends_wrong_bytes_is_dropped_and_named_and_the_chunk_comes_from_elsewhere")),
    Attack("10.18", "bombs: chunk, segment, manifest, archive, report", "member",
        "refused within the bound of memory", (
        "content/test_chunk.py::test_hostile_sealed_chunks_are_refused",
        "content/test_segment.py::test_bombs_do_not_take_more_memory_than_the_bound",
        "content/test_manifest.py::test_each_invariant_is_enforced",
        "content/test_stored_form_hostile.py::test_bombs_are_stopped_at_the_bound_in_bounded_memory",
        "compliance/test_report_record.py::test_a_packed_report_cannot_be_a_bomb")),
    Attack("10.19", "a signed release with a lower counter, or for other hardware", "one authority",
        "not applied, with the reason", (
        "daemon/test_steward_and_reporter.py::test_a_release_below_the_floor_is_neither_fetched_nor_applied",
        "daemon/test_privilege_separation.py::test_a_lower_release_counter_is_refused",
        "apply/test_apply_other_hardware.py::test_a_package_for_other_hardware_is_refused_and_nothing_is_changed")),
    Attack("10.20", "links, ``..``, absolute, reserved or twice-used names", "one authority",
        "refused; nothing outside is reached", (
        "test_ids.py::test_a_path_that_could_leave_its_root_is_refused",
        "apply/test_apply_archives.py::test_hostile_members_are_refused_and_reach_nothing_outside",
        "content/test_manifest.py::test_each_invariant_is_enforced")),
    Attack("10.21", "a staged file is swapped between check and use", "disk", "caught: only hashed bytes are used", (
        "apply/test_apply_archives.py::test_only_what_was_hashed_is_unpacked",
        "daemon/test_privilege_separation.py::test_bytes_that_were_not_signed_are_not_applied",
        "daemon/test_privilege_separation.py::test_what_is_due_is_decided_again_when_the_bytes_are_here",
        "daemon/test_privilege_separation.py::test_open_files_that_are_passed_never_arrive")),
    Attack("10.22", "foreign authority, no certificate, expired, other fleet, TLS 1.2, …", "stranger",
        "closed before any frame", (
        "wire/test_link.py::test_strangers_are_closed_before_any_word",
        "wire/test_link.py::test_a_certificate_that_names_another_fleet_is_refused_even_under_our_authority",
        "daemon/test_disasters.py::test_a_peer_without_a_certificate_of_this_fleet_is_closed_before_any_message")),
    Attack("10.23", "a request for a certificate in another name", "member",
        "the name is the key's, whatever is asked", (
        "enrolment/test_enrolment.py::test_a_device_is_named_by_its_key_and_not_by_its_wish",
        "enrolment/test_enrolment.py::test_who_does_not_hold_the_key_gets_no_certificate_for_it")),
    Attack("10.24", "token used twice, expired, altered, or a false desk", "stranger", "refused, by device and desk", (
        "enrolment/test_enrolment.py::test_a_token_is_worth_as_many_devices_as_it_says",
        "enrolment/test_enrolment.py::test_a_token_that_expired_is_refused_by_device_and_desk",
        "enrolment/test_enrolment.py::test_a_token_that_was_changed_leads_nowhere",
        "enrolment/test_enrolment.py::test_a_foreign_authority_of_the_same_name_cannot_play_the_desk",
        "enrolment/test_enrolment.py::test_another_member_cannot_play_the_desk")),
    Attack("10.25", "a revoked device goes on", "member", "its sessions drop at once; it is refused everywhere", (
        "daemon/test_admission.py::test_live_sessions_of_a_revoked_device_drop_at_once_and_a_redial_is_refused_on_both_sides",
        "daemon/test_admission.py::test_a_revoked_device_is_refused_as_peer_and_as_author_and_others_are_not",
        "daemon/test_admission.py::test_a_tls_session_cannot_be_resumed_past_a_revocation")),
    Attack("10.26", "forged adverts: others' addresses, ten thousand, storms of goodbyes", "stranger",
        "bounded; nobody dials outside", (
        "gossip/test_discovery.py::test_ten_thousand_adverts_storms_of_goodbyes_and_adverts_for_other_hosts_are_bounded",
        "gossip/test_discovery.py::test_a_forged_announcement_makes_nobody_dial_into_the_internet")),
    Attack("10.27", "a peer claims version 2³¹ for ever", "member", "ever rarer attempts; the honest are asked", (
        "gossip/test_spread.py::test_a_claim_that_does_not_come_true_costs_ever_longer_penalties",
        "gossip/test_spread.py::test_a_liar_does_not_keep_the_honest_from_being_asked",
        "daemon/test_collect_trust.py::test_a_visitor_that_lies_about_versions_costs_one_attempt")),
    Attack("10.28", "slow and half-open connections", "stranger", "bounded places, deadlines, friends get in", (
        "wire/test_link.py::test_those_who_never_finish_their_handshake_take_a_bounded_number_of_places",
        "wire/test_doorkeeper.py::test_strangers_who_fill_their_places_do_not_lock_a_known_neighbour_out",
        "wire/test_session.py::test_no_hello_within_its_deadline_ends_it")),
    Attack("10.29", "reports: forged, replayed, reordered, oversize, of another device, of the future", "member",
        "refused, or shown as what they are", (
        "collector/test_collector.py::test_what_is_not_genuine_is_refused_and_does_not_spoil_the_batch",
        "collector/test_archive.py::test_any_order_any_repetition_and_any_batching_ends_in_the_same_rows",
        "collector/test_archive.py::test_another_report_under_a_taken_number_is_kept_as_evidence_and_changes_nothing_else",
        "compliance/test_report_record.py::test_a_record_above_its_cap_is_refused_before_it_is_parsed",
        "compliance/test_report_record.py::test_nobody_can_sign_the_sealed_report_of_another_device",
        "collector/test_fleet_views.py::test_what_needs_a_person_is_named")),
    Attack("10.30", "a relay drops and doubles", "relay", "each report counts exactly once", (
        "compliance/test_no_report_lost.py::TestNoReportLost",
        "daemon/test_disasters.py::test_a_device_without_a_route_is_carried_by_its_neighbour_and_reported_once")),
    Attack("10.31", "key file: wrong passphrase, altered, huge derivation, readable by others", "signer's machine",
        "an error of its own each", (
        "authority/test_keyfile.py::test_a_wrong_passphrase_is_refused_and_says_so",
        "authority/test_keyfile.py::test_an_altered_header_is_found_out",
        "authority/test_keyfile.py::test_a_derivation_out_of_bounds_is_refused_before_it_costs_anything",
        "authority/test_keyfile.py::test_a_key_file_that_others_can_read_is_not_used")),
    Attack("10.32", "a signature over other bytes, by a stranger, or twice", "one authority", "refused by name", (
        "authority/test_signature_file.py::test_what_cannot_be_merged_is_refused_by_name",
        "authority/test_signature_file.py::test_nobody_counts_twice_and_a_bad_signature_in_the_place_of_a_good_one_is_replaced")),
    Attack("10.33", "a root signed by new or by old keys alone", "one authority",
        "not published; who is missing is named", (
        "authority/test_repository.py::test_a_new_root_needs_the_old_and_the_new_holders",)),
    Attack("10.34", "a change that the signer is not shown", "signer's machine", "shown, whatever it is", (
        "authority/test_difference.py::test_the_difference_is_empty_if_and_only_if_the_signed_bytes_are_equal",
        "authority/test_difference.py::test_one_leaf_that_changes_is_shown_whichever_it_is")),
    Attack("10.35", "documents against each rule", "one authority", "each rule has its failing example", (
        LINT + "test_a_root_against_a_rule", LINT + "test_targets_against_a_rule", LINT + "test_a_delegation_against_a_rule")),
    Attack("10.36", "the audit log is cut or edited", "signer's machine", "found and named", (
        "authority/test_audit_log.py::test_what_is_done_to_a_log_is_found_and_named",
        "authority/test_audit_log.py::test_a_log_that_is_shorter_than_the_embedded_one_was_cut_off",
        "authority/test_audit_log.py::test_no_altered_byte_goes_unnoticed")),
    Attack("10.37", "token: wrong PIN, removed, locked", "signer's machine", "signs nothing, and says why", (
        "authority/test_hardware_key.py::test_a_wrong_pin_says_so_is_tried_once_and_is_not_repeated_in_the_message",
        "authority/test_hardware_key.py::test_a_token_removed_between_the_question_and_the_signature_signs_nothing",
        "authority/test_hardware_key.py::test_the_last_attempts_before_a_token_locks_itself_are_told")),
    Attack("10.38", "a blob with other bytes, in a carried workspace or on a rotten disk", "signer's machine",
        "named before anything is committed or placed", (
        "authority/test_publish.py::test_a_blob_with_other_bytes_is_named_before_devices_meet_it",
        "authority/test_publish.py::test_a_blob_that_rotted_in_the_folder_comes_into_no_new_tree",
        "authority/test_carrying.py::test_an_import_puts_a_blob_right_that_is_here_with_other_bytes",
        "authority/test_carrying.py::test_a_proposal_is_not_exported_with_a_blob_that_has_other_bytes")),
    Attack("10.39", "a planted volume of the audit log", "one authority", "neither signed nor published; shown whole", (
        "authority/test_auditing.py::test_a_volume_after_a_gap_is_neither_signed_nor_published_and_the_next_change_leaves_it_out",
        "authority/test_difference.py::test_what_is_no_log_is_shown_whole_under_the_name_of_one")),
    Attack("10.40", "joining between the look at the queue and the word to let all in", "stranger", "named, and waits", (
        "cli/test_cli_enroll.py::test_who_came_after_the_list_was_shown_is_not_let_in_with_all",
        "enrolment/test_approval.py::test_who_left_or_came_with_another_token_makes_another_list")),
    Attack("10.41", "a member claims another site, to neighbours or in reports", "member", "its certificate's counts", (
        "gossip/test_overlay.py::test_a_neighbour_is_of_the_site_that_its_certificate_says_whatever_it_claims",
        "enrolment/test_enrolment.py::test_a_device_is_named_by_its_key_and_not_by_its_wish",
        "enrolment/test_renewal.py::test_a_member_gets_the_same_certificate_with_new_dates",
        "daemon/test_certificate_life.py::test_a_collector_counts_a_device_at_the_site_that_its_certificate_says")),
    Attack("10.42", "halts without end by one key", "site key", "fifty at most; lifted in one signed step", (
        "trust/test_halt.py::test_a_key_of_a_site_cannot_take_the_places_that_the_fleets_halts_need",
        "trust/test_halt.py::test_all_halts_of_a_stolen_key_are_lifted_in_one_signed_step")),
    Attack("10.43", "a halt is held back", "online keys", "frozen once what people signed has ended", (
        "trust/test_halt.py::test_whoever_holds_a_halt_back_freezes_the_device_in_the_end",
        "trust/test_halt.py::test_a_list_of_halts_that_is_withheld_stops_everything_new",
        "daemon/test_privilege_separation.py::test_who_keeps_the_list_of_halts_back_gets_nothing_new_made",
        "daemon/test_privilege_separation.py::test_a_site_that_acts_alone_is_followed_within_what_the_fleet_allows")),
    Attack("10.44", "a site's policy beyond what it may set, carried to its signer", "one authority",
        "refused by the signer's tool, in publishing and by devices", (
        "authority/test_carrying.py::test_whoever_signs_for_a_site_elsewhere_has_it_judged_by_what_the_fleet_signed",
        "authority/test_carrying.py::test_a_site_policy_that_devices_would_set_aside_is_not_published_though_it_was_signed_elsewhere",
        "policy/test_precedence.py::test_whatever_a_site_signs_a_device_is_never_milder_than_the_fleet_alone_makes_it")),
    Attack("10.45", "the disk is full at any step", "disk", "the last good stays; room is all that it takes", (
        CRASHES + "test_on_a_full_disk_the_view_stays_and_room_is_all_that_it_takes",
        "authority/test_auditing.py::test_on_a_full_disk_nothing_is_half_there_and_the_same_command_completes",
        "authority/test_auditing.py::test_a_line_of_the_log_that_does_not_fit_leaves_nothing_of_itself",
        "enrolment/test_approval.py::test_a_desk_on_a_full_disk_lets_nobody_in_for_nothing_and_costs_no_use")),
    Attack("10.46", "SIGKILL while something is halted, lifted or published", "disk",
        "the tree verifies; no halt goes by itself", (
        "authority/test_delegated_publishing.py::test_killed_while_something_is_halted_or_lifted_no_device_sees_a_halt_go_by_itself",
        "authority/test_delegated_publishing.py::test_killed_while_a_site_is_published_the_tree_is_whole",
        "authority/test_publish.py::test_killed_at_any_step_the_tree_verifies_and_publishing_completes_it")),
    Attack("10.47", "an older, altered or foreign floor for a site that acts alone", "carrier", "refused; what is held stays", (
        "daemon/test_site_floor.py::test_a_tree_that_was_rolled_back_loosens_nothing",
        "daemon/test_site_floor.py::test_a_thief_of_the_online_keys_brings_no_older_words_back",
        "daemon/test_site_floor.py::test_a_fleet_with_the_same_id_and_other_keys_is_not_taken_for_this_one",
        "authority/test_fleet_floor.py::test_nothing_of_a_floor_can_be_altered_unseen",
        "authority/test_fleet_floor.py::test_documents_of_two_moments_make_no_floor",
        "authority/test_held_floor.py::test_killed_while_a_floor_is_taken_over_the_old_one_or_the_new_one_is_held")),
    Attack("10.48", "a policy slipped into the proposal of a site that acts alone", "one authority",
        "refused in signing, in publishing and by devices", (
        "authority/test_held_floor.py::test_a_policy_slipped_into_the_proposal_by_hand_is_refused_by_signing",
        "authority/test_held_floor.py::test_what_was_signed_before_the_fleet_said_less_is_not_published",
        "authority/test_carried_floor.py::test_what_a_heedless_tool_signed_elsewhere_is_not_published",
        "authority/test_carried_floor.py::test_a_floor_that_was_exchanged_on_the_way_is_seen",
        "daemon/test_site_alone.py::test_from_a_web_server_of_the_office_and_a_policy_that_loosens_is_set_aside_and_said")),
)  # fmt: skip


def markdown() -> str:
    """The table of SECURITY.md; each test by its first name, the others follow from the catalogue."""
    lines = ["| # | attack | by | what becomes of it | test |", "|---|---|---|---|---|"]
    for attack in ATTACKS:
        file, _, name = attack.tests[0].partition("::")
        more = f" (+{len(attack.tests) - 1})" if len(attack.tests) > 1 else ""
        lines.append(
            f"| {attack.id} | {attack.name} | {attack.attacker} | {attack.outcome} | `tests/{file}` `{name}`{more} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
