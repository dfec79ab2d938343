"""The KVM engine: the host's own processor through /dev/kvm, from Python alone."""
