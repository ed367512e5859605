"""The protocol between the cluster process and the agent on a node: frames, a resumable channel, typed messages."""
