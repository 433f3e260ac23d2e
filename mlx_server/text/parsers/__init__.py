"""Reading a reply: what of it is reasoning, what content, what a call. One file per family."""
