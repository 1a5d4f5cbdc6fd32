package strictyaml

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeys(t *testing.T) {
	require.Equal(t, "list, port, deep {name}", Keys(sample{}))
	require.Equal(t, []Key{{"list", "list", ""}, {"port", "number", ""}, {"deep.name", "text", ""}}, Reference(sample{}))
}
