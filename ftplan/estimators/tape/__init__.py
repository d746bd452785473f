"""The step as a program over sizes: what autograd keeps and frees, operation by operation, without torch."""
