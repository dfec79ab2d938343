"""Back ends of split devices: what answers a para-virtual guest's rings. `paravirt.xen` says how they are found."""
