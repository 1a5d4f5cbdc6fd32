package protocol

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConnections(t *testing.T) {
	const text = `{"flows":[{"proto":6,"from":"10.1.1.3:40000","to":"10.2.1.2:5432","count":3}],"more":1}`
	var c Connections
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	require.NoError(t, c.Check())
	b, err := json.Marshal(c)
	require.NoError(t, err)
	require.JSONEq(t, text, string(b))
}

// FuzzConnections: a node in good standing says of its connections what it likes.
func FuzzConnections(f *testing.F) {
	f.Add([]byte(`{"flows":[{"proto":6,"from":"10.1.1.3:40000","to":"10.2.1.2:5432","count":3}]}`))
	f.Add([]byte(`{"flows":[{"from":"[fe80::1%e]:1","to":"[fd00::1]:1","count":-1}],"more":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Connections
		if json.Unmarshal(b, &c) != nil || c.Check() != nil {
			return
		}
		sum := c.More
		for _, x := range c.Flows {
			require.Positive(t, x.Count)
			require.Empty(t, x.From.Addr().Zone()+x.To.Addr().Zone())
			require.Equal(t, x.From.Addr().Is4(), x.To.Addr().Is4())
			sum += x.Count
		}
		require.GreaterOrEqual(t, sum, 0)
	})
}
