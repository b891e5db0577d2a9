"""A Flower ClientApp with handlers of its own."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import Net, accuracy, fit, load_data

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the network for one round."""
    net = _net(message)
    (images, labels), _ = load_data(context)
    metrics = MetricRecord({"loss": fit(net, images, labels), "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the network."""
    _, (images, labels) = load_data(context)
    metrics = MetricRecord({"accuracy": accuracy(_net(message), images, labels), "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net
