-- Items have attributes, as queries do: searches can be filtered by them.

-- `first_content`: what attributes and label were before the first change, NULL where there was none. A replica that still
-- serves the vector of the content before finds it by these.
ALTER TABLE item
    ADD COLUMN attributes jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN first_content jsonb;
CREATE INDEX item_changed ON item (gallery_id, row) WHERE first_content IS NOT NULL;

-- A rank's content never changes, so its attributes and label stand beside it: they begin to count with its vector.
ALTER TABLE late_item ADD COLUMN content jsonb NOT NULL DEFAULT '{}';

-- Items that had changed when a rollout's plan was written: their ranks within the plan have the content of that moment.
CREATE TABLE planned_content (
    rollout_id  bigint NOT NULL REFERENCES rollout ON DELETE CASCADE,
    row         bigint NOT NULL,
    content     jsonb NOT NULL,
    PRIMARY KEY (rollout_id, row)
);

-- Late items of the release before: the label that is known.
UPDATE late_item l SET content = jsonb_strip_nulls(jsonb_build_object('label', i.label))
FROM rollout r, item i WHERE r.id = l.rollout_id AND i.gallery_id = r.gallery_id AND i.row = l.row;
