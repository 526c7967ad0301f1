"""Fitness: whether the artifacts of a release can be what a policy makes of them. Core; asked by the tool and by the device.

A release keeps archives in their stored form, with the inner compression undone (DESIGN.md 6). dpkg and unpacking take that as it
is, but a *file* resource promises the very bytes that were delivered, so its artifact must have been released as ``exact``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pcm_p2p.policy.resource import FileResource, Resource, artifact_of


def why_unfit(resources: Iterable[Resource], forms: Mapping[str, str]) -> str:
    """One sentence that names the first artifact which is absent or has the wrong form; empty if all fit.

    ``forms`` are the stored forms of the release's artifacts, by name.
    """
    for resource in resources:
        name = artifact_of(resource)
        if name is None:
            continue
        form = forms.get(name)
        if form is None:
            return f"the release has no artifact {name}; correct the policy"
        if isinstance(resource, FileResource) and form != "exact":
            return (
                f"artifact {name} is kept as unpacked {form}, and a file resource places the delivered bytes; "
                "add the release with --form exact"
            )
    return ""
