"""`afterclick bench faults`: kill, cut, flood and resend, then prove the state against the log.

Each case starts its own Kafka and Valkey, and has a control: the same fault without the protection, which has
to end in a wrong state. A control that does not differ would mean that the case proves nothing.
"""
