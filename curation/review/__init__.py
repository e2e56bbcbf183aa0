"""Human evaluation of a version: a sample is drawn, people rate it, their agreement and the means are reported.

Everything stands beside the version's files:

    datasets/{recipe}/{version}/review/{set}/set.json                               which samples, drawn how
                                            /ratings/{rater}/{item}/{number}.json   append-only: a later one counts
                                            /report.json                            means, intervals, agreement

A page needs: sets.create_set, list_sets, read_set, read_item; ratings.next_item, rate, progress; report.write_report.
"""
