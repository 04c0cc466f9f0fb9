-- An item may be there in several modalities: an episode as a video and as its plot. Which of them is embedded is the model's.

-- Of other modalities than the gallery's own: modality -> URI; null: none.
ALTER TABLE item ADD COLUMN other_uris jsonb CHECK (jsonb_typeof(other_uris) = 'object');

-- Those that some item has. A gallery's own `modality` every item has, and `item.uri` is of it.
ALTER TABLE gallery ADD COLUMN other_modalities text[] NOT NULL DEFAULT '{}'
    CHECK (other_modalities <@ ARRAY['image', 'text', 'video'] AND NOT modality = ANY (other_modalities));

-- Models of one gallery may now differ in it, so that of a query set is always said.
UPDATE query_set s SET modality = g.modality FROM gallery g WHERE g.id = s.gallery_id AND s.modality IS NULL;
ALTER TABLE query_set ALTER COLUMN modality SET NOT NULL;
