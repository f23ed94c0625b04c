"""Batch scoring: every row of files through engines, once, whatever is killed; rows that cannot be scored apart.

start        who computes and what is asked for: `enginehouse.score` and the command
job          a job from its beginning to its end; what it is made of:
  sources units readers/     INPUT -> files -> units -> rows
  mapping task rows/         which columns are which inputs; rows -> what a model is asked, exactly
  answering ways/                                       who answers
  scorer workers caution     units -> results, in processes that may die
  results/ ledger lease storage     what is published in OUTPUT, so that the same command goes on
"""
