"""What a para-virtual guest finds under it: calls, events and frames in the place of a processor's privileged half."""
