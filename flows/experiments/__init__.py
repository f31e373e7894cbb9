"""Named experiments: the method's open questions, answered by numbers that anyone can print again.

`catalogue` says what is varied, `subjects` on which classes, `measures` what is measured, `runs` does and keeps the
runs, `page` writes docs/experiments. Nothing that an experiment trains is ever registered.
"""
