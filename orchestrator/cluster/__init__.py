"""Ray: a session on this machine or a cluster, and jobs on a remote one."""
