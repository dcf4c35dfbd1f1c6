-- Up to where each part of a source was read, a partition or a table: moved by the load that brought it. Expand only.

CREATE TABLE position (
    dataset text NOT NULL,
    part    text NOT NULL,
    stands  text NOT NULL,
    load_id bigint NOT NULL REFERENCES load,
    PRIMARY KEY (dataset, part)
);

GRANT SELECT ON position TO model_reader, model_loader;
GRANT INSERT, UPDATE (stands, load_id) ON position TO model_loader;
