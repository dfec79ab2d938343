"""The hypervisor and its interface to the guest.

The middle package: it stands on `emulator` and never imports `bt`. What it needs of run-time
rewriting it asks of a `paravirt.translator.Translator`, which `bt` provides.
"""
